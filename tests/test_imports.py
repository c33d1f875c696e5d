# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Which module imports which, imports inside functions included: no layer imports one above it, and there is no circle
in the layers above the ops."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import reidfast

ROOT = Path(reidfast.__file__).parent
LAYERS = (
    ("ops",),
    ("evaluation", "compat", "nn"),
    ("models", "losses", "data"),
    ("engine",),
    ("report",),
    ("cli",),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports() -> dict[str, set[str]]:
    """The modules of the package, and what each imports of it."""
    files = {".".join(("reidfast", *p.relative_to(ROOT).with_suffix("").parts)): p for p in ROOT.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in files}
            elif isinstance(node, ast.ImportFrom):
                above = package.rsplit(".", node.level - 1)[0] if node.level else ""
                base = ".".join(filter(None, (above, node.module)))
                targets = (f"{base}.{alias.name}" for alias in node.names)
                found[name] |= {t if t in files else base for t in targets if t in files or base in files}
        found[name].discard(name)
    return found


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_no_import_runs_upward():
    upward = [
        (name, target)
        for name, targets in imports().items()
        for target in targets
        if LEVELS.get(layer(name), len(LAYERS)) < LEVELS.get(layer(target), -1)
    ]
    assert not upward


def test_no_circle():
    upper = {name for name in imports() if LEVELS.get(layer(name), 0) >= LEVELS["models"]}
    try:
        TopologicalSorter({name: targets & upper for name, targets in imports().items() if name in upper}).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' -> '.join(error.args[1])}") from error
