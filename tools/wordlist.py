# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Rejects unidiomatic phrases and some misspellings in the Markdown pages: ``python tools/wordlist.py [FILE ...]``.

Code (fenced, indented or in backticks), formulas, comments and link targets are not searched.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Regular expression: what to write instead.
PHRASES = {
    r"stands? (?:beside|there|in a page|in their pages?|in its page)\b": "is, are; or name the place",
    r"stand in (?:the|a|their|its) (?:page|docstring|result|table|file)s?\b": "are in",
    r"lost cases included, stand\b": "all rows, including lost cases, are in",
    r"(?:is|are) not to be had\b": "is not available",
    r"\bnot there yet\b": "not implemented yet",
    r"\bwas at hand\b|\bwere at hand\b": "was available",
    r"\bin the Python at hand\b": "in the current Python",
    r"\bcosts no other\b": "does not affect the others",
    r"\bgoes on where it was\b|\bwent on where it was\b": "continues where it stopped",
    r"\bwent on from\b": "continued from",
    r"\bso many\b(?! as)": "that many, or name the number",
    r"\bserves what\b|\bwhat serves\b": "which implementation serves",
    r"\bmade again\b": "recreated, recomputed",
    r"\btaken anew\b|\bmade anew\b|\bcomputes? .{1,20} anew\b": "recomputed",
    r"\bone looks? (?:at|for)\b": "name who looks",
    r"\bwhatever is returned\b": "whatever dtype is returned",
    r"\bis asked of\b|\basked of\b": "requested from",
    r"\bteaches itself\b": "learns",
    r"\bknows? of\b": "has, lists",
    r"\bmends?\b": "fixes",
    r"\bnobody says who\b": "unnamed",
    r"\bthe very (?:file|same|step)\b": "the same",
    r"\bwhat users hand in\b": "inputs",
    r"\b0\.869565x|0\.769231x|0\.625x": "at most 1.15x its time (targets are not inverses)",
    r"\bMETHODS\b": "name the paper; that document is not in the repository",
    # Misspellings.
    r"\b(?:teh|recieve[ds]?|seperate(?:ly|d)?|occured|occurence|accomodate|independant|persistant)\b": "spelling",
    r"\b(?:lenght|heigth|widht|paramter|arguement|neccessary|succesful|consistant|reproducable)\b": "spelling",
}  # fmt: skip
PATTERNS = [
    (re.compile(pattern, re.IGNORECASE if pattern.islower() else 0), advice) for pattern, advice in PHRASES.items()
]
IGNORED = re.compile(
    r"^```.*?^```|^(?: {4}|\t)(?![-*\d]).*?$|<!--.*?-->|\$\$.*?\$\$|\$[^$\n]+\$|`[^`\n]+`|\]\([^)\n]*\)",
    re.MULTILINE | re.DOTALL,
)


def blank(match: re.Match[str]) -> str:
    """The same lines without their text, so that line numbers stay right."""
    return re.sub(r"[^\n]", " ", match[0])


def problems(text: str) -> list[tuple[int, str, str]]:
    """(line, phrase, advice) of every phrase; a phrase may run over the end of a line."""
    prose = IGNORED.sub(blank, text).replace("\n", " ")
    hits = [(m.start(), m[0], advice) for pattern, advice in PATTERNS for m in pattern.finditer(prose)]
    return [(text.count("\n", 0, start) + 1, phrase, advice) for start, phrase, advice in sorted(hits)]


def main() -> int:
    """Check the pages given, or all of the repository's."""
    pages = [Path(name) for name in sys.argv[1:]] or sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    count = 0
    for page in pages:
        for line, phrase, advice in problems(page.read_text()):
            print(f"{page}:{line}: {phrase!r}: {advice}")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
