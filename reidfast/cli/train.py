# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast train METHOD`: settings by jsonargparse, the run by Lightning."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from typing import Any

from ._common import add_command

__all__: list[str] = []


def add(subparsers: Any) -> None:
    """The subcommand's arguments; what follows METHOD belongs to jsonargparse."""
    parser = add_command(subparsers, "train", run, "train a model and evaluate it")
    parser.add_argument("method", metavar="METHOD", help="a file of reidfast/configs: ide, pcb, strong_baseline ...")
    parser.add_argument("--json", action="store_true", help="print metrics.json")
    parser.add_argument(
        "settings",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="--config FILE, dotted settings such as --optim.epochs 60, --help for all",
    )


def run(args: argparse.Namespace) -> int:
    """Train."""
    from reidfast.engine.methods import find_method
    from reidfast.engine.training import launched_processes, leave_processes, train

    method = find_method(args.method)
    config = method.parse(args.settings)
    with redirect_stdout(sys.stderr):  # Lightning's progress is no result
        metrics = train(method, config)
    launched = launched_processes()
    if launched is None or launched.rank == 0:
        show(metrics, args.json)
    if launched is not None:
        leave_processes()
    return 0


def show(metrics: dict[str, Any], as_json: bool) -> None:
    """Print the scores."""
    if as_json:
        print(json.dumps(metrics))
        return
    rows = ([{"epoch": 0, **metrics["before"]}] if metrics["before"] else []) + metrics["history"]
    for row in rows:
        scores = "   ".join(f"{name} {100 * value:5.1f}" for name, value in row.items() if name != "epoch")
        print(f"epoch {int(row['epoch']):>4}   {scores}")
    print(f"weights, checkpoints and logs: {metrics['config']['out']}")
