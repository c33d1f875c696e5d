# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast table`: runs side by side, mean and spread over their seeds."""

from __future__ import annotations

import argparse
import math
from typing import Any

from ._common import add_command, add_json, print_json, print_table


def add(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = add_command(
        subparsers, "table", run, "compare runs: mean and standard deviation over seeds, a row a setting"
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    parser.add_argument("--which", default="last", help="last (default), best (by mAP) or before: the epoch scored")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Read and print."""
    from reidfast.engine.tables import runs_table

    rows = runs_table(args.runs, which=args.which)
    if args.json:
        clean = [
            {
                **row._asdict(),
                "scores": {
                    name: {key: None if math.isnan(value) else value for key, value in score.items()}
                    for name, score in row.scores.items()
                },
            }
            for row in rows
        ]
        print_json(clean)
        return
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    head = ["runs", "seeds", *names]
    lines = [[row.name, str(len(row.runs)), *(_cell(row.scores.get(name)) for name in names)] for row in rows]
    if args.markdown:
        for line in [head, ["---"] * len(head), *lines]:
            print(f"| {' | '.join(line)} |")
    else:
        print_table(head, lines)


def _cell(score: dict[str, float] | None) -> str:
    if score is None:
        return "-"
    mean = f"{100 * score['mean']:.1f}"
    return mean if math.isnan(score["std"]) else f"{mean} ± {100 * score['std']:.1f}"
