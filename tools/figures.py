# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Writes the figures of README.md from benchmarks/results/*.json: ``python tools/figures.py`` (``--check``: only
compare).

Between ``<!-- figures: FILE -->`` and ``<!-- end figures -->`` stands a table made from benchmarks/results/FILE.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- figures: (\S+) -->\n)(.*?)(<!-- end figures -->)", re.DOTALL)


def milliseconds(seconds: float) -> str:
    """Three significant digits."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def table(report: dict[str, Any]) -> str:
    """One row per entry, shape and baseline; lost cases included."""
    if "overhead" in report:
        lines = ["| op | call overhead, forward with gradient, in `torch.mul`s |", "|---|---|"]
        lines += [f"| `{name}` | {ratio:.1f} |" for name, ratio in report["overhead"].items()]
        return "\n".join(lines) + "\n"
    e = report["environment"]
    lines = [
        f"{e.get('device', e['processor'])}, {e['threads']} threads, {e['isa']}, torch {e['torch']}, {e['date']}, "
        f"commit {e['commit']}, load {e['load_1min']}.",
        "",
        "| what | size | ours | baseline | ours is faster by | wanted |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["results"]:
        ours = milliseconds(row["times_s"]["reidfast"]["p50"])
        for name, ratio in row["ratios"].items():
            target = row["targets"].get(name)
            wanted = (
                ""
                if target is None
                else f"{target['wanted']:g}x" + ("" if ratio >= target["wanted"] else ", **missed**")
            )
            lines.append(
                f"| {row['name']}, {row['mode']} | {row['shape']} | {ours} | {name} | {ratio:.2f}x | {wanted} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Rewrite, or with --check report a README that does not match its files."""
    readme = ROOT / "README.md"
    text = readme.read_text()

    def fill(match: re.Match[str]) -> str:
        report = json.loads((ROOT / "benchmarks" / "results" / match[2]).read_text())
        return match[1] + "\n" + table(report) + "\n" + match[4]

    new = BLOCK.sub(fill, text)
    if "--check" in sys.argv[1:]:
        if new != text:
            print("README.md does not match benchmarks/results; run python tools/figures.py", file=sys.stderr)
        return int(new != text)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
