# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast bench`: the benchmarks of the source checkout."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from ._common import add_command


def add(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = add_command(subparsers, "bench", run, "run the benchmarks (in a source checkout)", add_help=False)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to python -m benchmarks.run")


def run(args: argparse.Namespace) -> int:
    """Hand over to `benchmarks/run.py`."""
    import reidfast

    root = Path(reidfast.__file__).resolve().parents[1]
    if not (root / "benchmarks" / "run.py").is_file():
        raise ValueError("the benchmarks come with the source, not with the package; run this in a checkout")
    return subprocess.run([sys.executable, "-m", "benchmarks.run", *args.arguments], cwd=root, check=False).returncode
