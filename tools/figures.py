# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Writes the tables of docs/ and the chart docs/img/ratios.svg from benchmarks/results/*.json.

``python tools/figures.py`` writes them, ``python tools/figures.py --check`` only compares and fails if one is stale.

The text between ``<!-- figures: FILE -->`` and ``<!-- end figures -->`` is a table made from benchmarks/results/FILE.
FILE may be a pattern such as training-*.json, whose files make one table.
"""

from __future__ import annotations

import json
import math
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = (ROOT / "benchmarks" / "results", ROOT / "studies" / "results")
CHART = ROOT / "docs" / "img" / "ratios.svg"
BLOCK = re.compile(r"(<!-- figures: (\S+) -->\n)(.*?)(<!-- end figures -->)", re.DOTALL)

# Baselines that do only part of the work, or other work: the table gives our time as a share of theirs.
YARDSTICKS = {
    "baseline, cross-entropy alone",
    "half product",
    "memory_loss of the same shape",
    "no loading at all",
    "q @ g.T alone",
    "two torch.bmm",
}

# Bars of the chart: label, results file, entry, shape, baseline.
EVALUATION, RERANKING, MEMORY, OPS = (f"cpu-{part}-*.json" for part in ("evaluation", "reranking", "memory", "ops"))
BARS = [
    ("rank a distance matrix, Market-1501", EVALUATION, "rank_distances", "market", "torchreid cython (restated)"),
    ("rank a distance matrix, Market-1501", EVALUATION, "rank_distances", "market", "fast-reid cython"),
    ("re-rank, Market-1501", RERANKING, "rerank", "market and torchreid", "torchreid"),
    ("Jaccard graph, 12,936 images", RERANKING, "jaccard_graph", "market train", "faiss and dense (fast-reid)"),
    ("memory_loss, 6 banks of 12,936 rows", MEMORY, "memory_loss", "market", "PAUL's pattern"),
    ("memory_loss, 6 banks of 12,936 rows", MEMORY, "memory_loss", "market", "torch.compile of eager"),
    ("set_pool, 512 ragged sets", EVALUATION, "set_pool ragged", "video", "eager index_add"),
    ("pool_patches, 6 patches", OPS, "pool_patches", "paul", "eager, six grid_sample calls and mean"),
    ("sample_patches, 6 patches", OPS, "sample_patches", "paul", "eager, six grid_sample calls"),
    ("diverse_attention, 192 frames", OPS, "diverse_attention", "drsta", "torch.compile of softmax, bmm, Gram"),
    ("cyclic_negatives, clustered", OPS, "cyclic_negatives", "clustered", "loop (PAUL)"),
    ("batch_hard, batch of 64", OPS, "batch_hard", "64", "loop over anchors (torchreid)"),
]


def milliseconds(seconds: float) -> str:
    """Three significant digits."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def table(report: dict[str, Any]) -> str:
    """One row per entry, shape and baseline; lost cases included."""
    if "overhead" in report:
        lines = ["| op | call overhead, forward with gradient, in units of one `torch.mul` |", "|---|---|"]
        lines += [f"| `{name}` | {ratio:.1f} |" for name, ratio in report["overhead"].items()]
        return "\n".join(lines) + "\n"
    if "parts" in report:
        return "\n".join(part_table(name, part) for name, part in report["parts"].items())
    return "\n".join([where(report["environment"]), "", *result_rows(report["results"])]) + "\n"


def share(quotient: float) -> str:
    """Our time as a share of a yardstick's."""
    if quotient < 0.1:
        return f"{100 * quotient:.2g} % of its time"
    return f"{quotient:.3g}x its time"


def compared(baseline: str, ratio: float) -> str:
    """A measured ratio (baseline's time over ours) in words."""
    if baseline in YARDSTICKS:
        return share(1 / ratio)
    return f"{ratio:.2f}x faster" if ratio >= 1 else f"{1 / ratio:.2f}x slower"


def target_text(baseline: str, ratio: float) -> str:
    """A target, given as baseline's time over ours, in the words of `compared`."""
    if baseline in YARDSTICKS or ratio < 1:
        return f"at most {share(1 / ratio)}"
    return "no slower" if ratio == 1 else f"at least {ratio:g}x faster"


def where(e: dict[str, Any]) -> str:
    """The machine in one line."""
    return (
        f"{e.get('device', e['processor'])}, {e['threads']} threads, {e['isa']}, "
        + (f"products by {e['products']}, " if "products" in e else "")
        + f"torch {e['torch']}, {e['date']}, "
        f"commit {e['commit']}, load {e['load_1min']}."
    )


def result_rows(results: list[dict[str, Any]]) -> list[str]:
    """The table of times."""
    lines = ["| what | size | reidfast | baseline | reidfast is | target |", "|---|---|---|---|---|---|"]
    for row in results:
        ours = milliseconds(row["times_s"]["reidfast"]["p50"])
        for name, ratio in row["ratios"].items():
            goal = ""
            if target := row["targets"].get(name):
                goal = target_text(name, target["wanted"]) + ("" if ratio >= target["wanted"] else ", **missed**")
            what = f"{row['name']}, {row['mode']} | {row['shape']}"
            lines.append(f"| {what} | {ours} | {name} | {compared(name, ratio)} | {goal} |")
    return lines if len(lines) > 2 else []


def part_table(name: str, part: dict[str, Any]) -> str:
    """One part of benchmarks/reranking.py: times, facts, or time and memory against gallery size."""
    lines = [f"`{name}`: {where(part['environment'])}", ""]
    if "results" in part and (rows := result_rows(part["results"])):
        lines += [*rows, ""]
    if "facts" in part:
        lines += ["| what | measured | target |", "|---|---|---|"]
        for fact in part["facts"]:
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
        "| run | R1 / mAP before | after | epochs | CPU minutes | wall minutes | target |",
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


def load(pattern: str) -> list[dict[str, Any]]:
    """The result files that a name or pattern stands for; the newest last."""
    paths = sorted(path for folder in RESULTS for path in folder.glob(pattern))
    if not paths:
        raise FileNotFoundError(f"figures: expected a file benchmarks/results/{pattern}, got none")
    return [json.loads(path.read_text()) for path in paths]


def read(pattern: str) -> str:
    """The table of a file, or of the files that a pattern names."""
    reports = load(pattern)
    if "training" in reports[0]:
        return training_table(reports)
    return "\n".join(table(report) for report in reports)


def chart() -> str:
    """An SVG of the ratios in BARS on a logarithmic axis."""
    bars = []
    machines = []
    for label, pattern, name, shape, baseline in BARS:
        report = load(pattern)[-1]
        for part in report["parts"].values() if "parts" in report else [report]:
            for row in part.get("results", ()):
                if (row["name"], row["shape"]) == (name, shape) and baseline in row["ratios"]:
                    bars.append((label, baseline, row["ratios"][baseline]))
                    machines.append(part["environment"])
    if len(bars) != len(BARS):
        raise ValueError(f"figures: expected {len(BARS)} ratios for the chart, got {len(bars)}")
    left, top, step, width = 360, 58, 26, 820
    right = width - 60
    bottom = top + step * len(bars)
    ticks = [1, 2, 5, 10, 20, 50, 100, 200]

    def x(ratio: float) -> str:
        return f"{left + (right - left) * math.log(ratio) / math.log(ticks[-1]):.1f}"

    machine = machines[0]
    dates = sorted({e["date"].split()[0] for e in machines})
    place = f"{machine['processor']}, {machine['threads']} threads, {machine['isa']}, torch {machine['torch']}"
    caption = f"CPU: {place}, {' to '.join(dates)}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 46}" '
        'font-family="sans-serif" font-size="12">',
        "<title>How many times faster reidfast is, with the baseline of each measurement</title>",
        "<style>text{fill:#24292f}.n{fill:#57606a}.b{fill:#0b7285}.g{stroke:#d0d7de}.p{fill:#fff}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.n{fill:#9198a1}.b{fill:#3bc9db}.g{stroke:#3d444d}"
        ".p{fill:#0d1117}}</style>",
        f'<rect class="p" width="{width}" height="{bottom + 46}"/>',
        '<text x="12" y="22" font-size="15" font-weight="bold">How many times faster than the baseline</text>',
        f'<text class="n" x="12" y="40">{escape(caption)}</text>',
    ]
    for tick in ticks:
        lines.append(f'<line class="g" x1="{x(tick)}" y1="{top}" x2="{x(tick)}" y2="{bottom}"/>')
        lines.append(f'<text class="n" x="{x(tick)}" y="{bottom + 16}" text-anchor="middle">{tick}x</text>')
    for i, (label, baseline, ratio) in enumerate(bars):
        y = top + step * i
        bar = f"{float(x(ratio)) - left:.1f}"
        lines.append(f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{escape(label)}</text>')
        against = f'<text class="n" x="{left - 8}" y="{y + 22}" font-size="9" text-anchor="end">'
        lines.append(f"{against}against {escape(baseline)}</text>")
        lines.append(f'<rect class="b" x="{left}" y="{y + 4}" width="{bar}" height="16" rx="2"/>')
        lines.append(f'<text x="{float(x(ratio)) + 5:.1f}" y="{y + 16}">{ratio:.3g}x</text>')
    lines.append(
        f'<text class="n" x="12" y="{bottom + 36}" font-size="10">Logarithmic axis. Each pair was measured in one run; '
        "all rows, lost cases included, are in docs/benchmarks.md.</text>"
    )
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> int:
    """Write the pages and the chart, or with --check report those that do not match the results."""
    new_texts = {CHART: chart()}
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        new_texts[page] = BLOCK.sub(lambda block: f"{block[1]}\n{read(block[2])}\n{block[4]}", page.read_text())
    check = "--check" in sys.argv[1:]
    stale = []
    for path, text in new_texts.items():
        if not path.is_file() or path.read_text() != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(text)
    if stale and check:
        print(
            f"figures: {', '.join(stale)} differ from benchmarks/results; run python tools/figures.py", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
