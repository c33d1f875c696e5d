# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""tools/wordlist.py: what it finds, what it leaves alone, and that the pages are free of it."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wordlist():
    spec = importlib.util.spec_from_file_location("wordlist", ROOT / "tools" / "wordlist.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_finds_phrases_across_lines(wordlist):
    ((line, phrase, advice),) = wordlist.problems("One.\nTwo data sets are not to be\nhad here.\n")
    assert (line, phrase) == (2, "are not to be had") and "not available" in advice


@pytest.mark.parametrize(
    "text",
    [
        "`made again`",
        "```\nmade again\n```",
        "    made again",
        "[x](made-again.md)",
        "<!-- made again -->",
        "$made again$",
    ],
)
def test_leaves_code_and_targets_alone(wordlist, text):
    assert not wordlist.problems(text + "\n")


def test_pages_are_clean(wordlist):
    pages = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    hits = [(page.name, *problem) for page in pages for problem in wordlist.problems(page.read_text())]
    assert not hits
