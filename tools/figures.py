# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Writes the figures of README.md and docs/ from measured results: ``python tools/figures.py``; ``--check`` compares.

Between ``<!-- figures: FILE -->`` and ``<!-- end figures -->`` stands a table made from FILE, which is in
benchmarks/results or studies/results; FILE may be a pattern such as training-*.json, whose files make one table.
``<!-- wanted figures: FILE -->``: the rows alone for which the project has set itself a target, met or missed.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = (ROOT / "benchmarks" / "results", ROOT / "studies" / "results")
BLOCK = re.compile(r"(<!-- (wanted )?figures: (\S+) -->\n)(.*?)(<!-- end figures -->)", re.DOTALL)


def milliseconds(seconds: float) -> str:
    """Three significant digits."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def table(report: dict[str, Any], all_rows: bool = True) -> str:
    """One row per entry, shape and baseline; lost cases included."""
    if "overhead" in report:
        lines = ["| op | call overhead, forward with gradient, in `torch.mul`s |", "|---|---|"]
        lines += [f"| `{name}` | {ratio:.1f} |" for name, ratio in report["overhead"].items()]
        return "\n".join(lines) + "\n"
    if "parts" in report:
        return "\n".join(part_table(name, part, all_rows) for name, part in report["parts"].items())
    return "\n".join([where(report["environment"]), "", *result_rows(report["results"], all_rows)]) + "\n"


def where(e: dict[str, Any]) -> str:
    """The machine in one line."""
    return (
        f"{e.get('device', e['processor'])}, {e['threads']} threads, {e['isa']}, "
        + (f"products by {e['products']}, " if "products" in e else "")
        + f"torch {e['torch']}, {e['date']}, "
        f"commit {e['commit']}, load {e['load_1min']}."
    )


def result_rows(results: list[dict[str, Any]], all_rows: bool) -> list[str]:
    """The table of times."""
    lines = [
        "| what | size | ours | baseline | ours is faster by | wanted |",
        "|---|---|---|---|---|---|",
    ]
    for row in results:
        ours = milliseconds(row["times_s"]["reidfast"]["p50"])
        for name, ratio in row["ratios"].items():
            target = row["targets"].get(name)
            if target is None and not all_rows:
                continue
            wanted = (
                ""
                if target is None
                else f"{target['wanted']:g}x" + ("" if ratio >= target["wanted"] else ", **missed**")
            )
            lines.append(
                f"| {row['name']}, {row['mode']} | {row['shape']} | {ours} | {name} | {ratio:.2f}x | {wanted} |"
            )
    return lines if len(lines) > 2 else []


def part_table(name: str, part: dict[str, Any], all_rows: bool) -> str:
    """One part of benchmarks/reranking.py: times, facts, or time and memory against gallery size."""
    lines = [f"`{name}`: {where(part['environment'])}", ""]
    if "results" in part and (rows := result_rows(part["results"], all_rows)):
        lines += [*rows, ""]
    if "facts" in part:
        lines += ["| what | found | wanted |", "|---|---|---|"]
        for fact in part["facts"]:
            if not fact["wanted"] and not all_rows:
                continue
            wanted = fact["wanted"] + (", **missed**" if fact["met"] is False else "")
            lines.append(f"| {fact['what']} | {fact['value']} | {wanted} |")
        lines.append("")
    if "scale" in part:
        lines += [
            "| what | gallery | D | queries | time | bare product | peak memory beside the features |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in part["scale"]:
            used = "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.0f} MB"
            time, product = milliseconds(row["s"]), milliseconds(row["product_s"])
            sizes = f"{row['gallery']:,} | {row['dim']} | {row['queries']:,}"
            lines.append(f"| {row['what']} | {sizes} | {time} | {product} | {used} |")
        lines.append("")
    return "\n".join(lines)


def training_table(reports: list[dict[str, Any]]) -> str:
    """One row per training run."""
    lines = [
        "| run | R1 / mAP before | after | epochs | CPU minutes | wall minutes | wanted |",
        "|---|---|---|---|---|---|---|",
    ]

    def scores(row: dict[str, float] | None) -> str:
        return f"{100 * row['rank1']:.1f} / {100 * row['mAP']:.1f}" if row else "-"

    for r in reports:
        last, wanted = r["history"][-1], r.get("wanted") or {}
        goal = ""
        if wanted:
            met = 100 * last["rank1"] >= wanted["rank1"] and 100 * last["mAP"] >= wanted["mAP"]
            # On a shared machine the processor's time says more than the clock.
            met = met and min(r["seconds"]["wall"], r["seconds"]["cpu"]) <= 60 * wanted["minutes"]
            goal = f"{wanted['rank1']:g} / {wanted['mAP']:g} in {wanted['minutes']} min" + (
                "" if met else ", **missed**"
            )
        e = r["environment"]
        seconds = r["seconds"]
        wall = f"{seconds['wall'] / 60:.0f} ({e['threads']} threads, load {e['load_1min']:g})"
        lines.append(
            f"| `{r['command']}` | {scores(r['before'])} | {scores(last)} | {int(last['epoch'])} | "
            f"{seconds['cpu'] / 60:.1f} | {wall} | {goal} |"
        )
    return "\n".join(lines) + "\n"


def read(name: str, all_rows: bool = True) -> str:
    """The table of a file, or of those that a pattern names."""
    paths = sorted(path for folder in RESULTS for path in folder.glob(name))
    if not paths:
        raise FileNotFoundError(f"figures: expected {name} in benchmarks/results or studies/results, got nothing")
    reports = [json.loads(path.read_text()) for path in paths]
    if "training" in reports[0]:
        return training_table(reports)
    return "\n".join(table(report, all_rows) for report in reports)


def main() -> int:
    """Rewrite, or with --check report pages that do not match their files."""

    def fill(match: re.Match[str]) -> str:
        return match[1] + "\n" + read(match[3], all_rows=not match[2]) + "\n" + match[5]

    stale = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text()
        new = BLOCK.sub(fill, text)
        if new != text:
            stale.append(str(page.relative_to(ROOT)))
            if "--check" not in sys.argv[1:]:
                page.write_text(new)
    if stale and "--check" in sys.argv[1:]:
        print(f"{', '.join(stale)}: not what the results say; run python tools/figures.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
