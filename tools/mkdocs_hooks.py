# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Three steps of the documentation site's build (mkdocs.yml): the API reference, links out of docs/, and formulas.

A line ``<!-- api: reidfast.ops -->`` becomes one entry for each name in that package's ``__all__``, found where it is
defined: a function named like its module (`ops.set_pool`) would otherwise be taken for the module.

Pages link to source files by relative paths, which work where the repository is browsed. On the site they lead to
`repo_url` where that is set, else only the text is left. Formulas become MathML, so that pages load no script from
elsewhere.
"""

from __future__ import annotations

import ast
import re
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

API = re.compile(r"^<!-- api: ([\w.]+) -->$", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)\s]+)\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def public_names(module: str, root: Path) -> list[str]:
    """The dotted path of each name in a module's ``__all__``, at its definition."""
    path = root.joinpath(*module.split("."))
    is_package = path.is_dir()
    tree = ast.parse((path / "__init__.py" if is_package else path.with_suffix(".py")).read_text())
    package = module if is_package else module.rpartition(".")[0]
    origin: dict[str, str] = {}
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            base = [package.rsplit(".", node.level - 1)[0]] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            origin |= {alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names = ast.literal_eval(node.value)
    if not names:
        raise ValueError(f"mkdocs_hooks: expected {module} to have __all__, got none")
    return [origin.get(name, f"{module}.{name}") for name in names if not name.startswith("__")]


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Expand the API reference, and point links that leave docs/ to the repository."""
    docs = Path(config.docs_dir).resolve()
    markdown = API.sub(lambda m: "\n".join(f"::: {name}\n" for name in public_names(m[1], docs.parent)), markdown)
    folder = docs / Path(page.file.src_uri).parent

    def outside(match: re.Match[str]) -> str:
        target = (folder / match[2].split("#")[0]).resolve()
        if target.is_relative_to(docs):
            return match[0]
        path = target.relative_to(docs.parent).as_posix()
        if config.repo_url:
            return f"[{match[1]}]({config.repo_url.rstrip('/')}/blob/main/{path})"
        return f"{match[1]} (`{path}`)"

    return LINK.sub(outside, markdown)


def on_page_content(html: str, *, page: Any, config: Any, files: Any) -> str:
    """Turn formulas into MathML."""

    def formula(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return convert(unescape(match[2]), display=display)

    return FORMULA.sub(formula, html)
