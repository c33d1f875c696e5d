# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Every Python block of the documentation runs as printed.

The blocks of a page run in order in one namespace, in an empty folder. A block that needs something that is missing has
a comment before it, ``<!-- not run: needs torchreid -->``; it must still compile, and NOT_RUN counts it.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(
    r"^(<!-- not run: (?P<reason>.+?) -->\n+)?^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S
)

# Blocks that cannot run in a test, by page.
NOT_RUN = {
    "README.md": 1,  # torchreid
    "docs/evaluation.md": 1,  # several processes
    "docs/for-users-of-torchreid-and-fast-reid.md": 1,  # torchreid
    "docs/training.md": 1,  # timm
}


def python_blocks(page):
    """(line, code, reason it is not run or None) of each block marked as Python."""
    text = page.read_text()
    for block in BLOCK.finditer(text):
        if block["language"] in ("python", "py", "pycon"):
            line = text.count("\n", 0, block.start("code"))
            yield line, block["code"], block["reason"]


def name_of(page):
    return page.relative_to(ROOT).as_posix()


WITH_PYTHON = [page for page in PAGES if any(True for _ in python_blocks(page))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REIDFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REIDFAST_DATA", raising=False)
    namespace = {"__name__": "__main__"}
    not_run = 0
    for line, code, reason in python_blocks(page):
        # Empty lines in front, so that a traceback shows the line of the page.
        compiled = compile("\n" * line + code, str(page), "exec")
        if reason:
            not_run += 1
        else:
            exec(compiled, namespace)
    assert not_run == NOT_RUN.get(name_of(page), 0)


def test_not_run_names_pages_with_blocks():
    assert set(NOT_RUN) <= {name_of(page) for page in WITH_PYTHON}


def test_every_fence_is_closed():
    for page in PAGES:
        fences = re.findall(r"^```", page.read_text(), re.M)
        assert len(fences) % 2 == 0, f"{name_of(page)}: an odd number of ``` lines"


def test_links_to_files_exist():
    """Relative links, those out of docs/ included, name files of the repository."""
    missing = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                missing.append(f"{name_of(page)}: {target}")
    assert not missing
