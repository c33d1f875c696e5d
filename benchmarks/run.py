# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Runs the registry: ``python -m benchmarks.run [NAME ...]``.

The op's tests run first; where they are red, no figure is taken. Prints a table (time, ratio to ours, share of the
floor) and writes one JSON with --out. Ratios are taken inside one run, providers in turn.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import timing
from benchmarks.harness.registry import REGISTRY, Bench, load_all
from benchmarks.harness.timing import OURS

ROOT = Path(__file__).resolve().parents[1]


def tests_are_green(bench: Bench) -> bool:
    """Run the entry's test file; True where it passes."""
    if not bench.tests:
        return True
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", bench.tests]
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def run_entry(bench: Bench, shape_name: str, device: str, ceiling: dict[str, float], rounds: int) -> dict[str, Any]:
    """Measure one entry at one shape."""
    shape = bench.shapes[shape_name]
    torch.manual_seed(0)
    torch.compiler.reset()  # a compiled baseline is made for this shape alone
    times = timing.measure(bench.providers(shape, device), device, rounds=rounds)
    floor = max(bench.bytes(shape) / ceiling["copy_bytes_per_s"], bench.flops(shape) / ceiling["mm_float32_flop_per_s"])
    ours = times[OURS]["p50"]
    ratios = {name: t["p50"] / ours for name, t in times.items() if name != OURS and "p50" in t}
    targets = bench.targets.get(shape_name, {})
    return {
        "name": bench.name,
        "mode": bench.mode,
        "shape": shape_name,
        "sizes": shape,
        "device": device,
        "floor_s": floor,
        "floor_share": floor / ours,
        "times_s": times,
        "ratios": ratios,
        "targets": {n: {"wanted": wanted, "got": ratios[n]} for n, wanted in targets.items() if n in ratios},
    }


def print_row(row: dict[str, Any]) -> None:
    """One entry as lines of a table."""
    ours = row["times_s"][OURS]
    print(f"{row['name']:<22} {row['shape']:<14} {row['mode']:<17} {OURS:<34} {ours['p50'] * 1e3:>10.3f} ms"
          f"  {100 * row['floor_share']:>5.1f} % of floor")  # fmt: skip
    for name, times in row["times_s"].items():
        if name == OURS:
            continue
        if "failed" in times:
            print(f"{'':<55} {name:<34} failed: {times['failed'][:80]}")
            continue
        wanted = row["targets"].get(name, {}).get("wanted")
        verdict = (
            "" if wanted is None else f"  wanted {wanted:g}x: {'met' if row['ratios'][name] >= wanted else 'MISSED'}"
        )
        print(f"{'':<55} {name:<34} {times['p50'] * 1e3:>10.3f} ms  {row['ratios'][name]:>7.2f}x{verdict}")


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("names", nargs="*", help="entries to run (default: all)")
    parser.add_argument("--list", action="store_true", help="list entries and shapes")
    parser.add_argument("--shape", action="append", help="only shapes of this name")
    parser.add_argument("--long", action="store_true", help="shapes of minutes too (re-ranking at full size)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    parser.add_argument("--skip-tests", action="store_true", help="take figures without running the tests first")
    args = parser.parse_args(arguments)
    load_all()
    unknown = [n for n in args.names if n not in REGISTRY]
    if unknown:
        parser.error(f"expected names among {', '.join(sorted(REGISTRY))}, got {', '.join(unknown)}")
    if args.list:
        for bench in REGISTRY.values():
            print(f"{bench.name:<22} {bench.mode:<17} {', '.join(bench.shapes)}")
        return 0
    if args.threads:
        torch.set_num_threads(args.threads)
    environment = timing.environment(args.device)
    print(json.dumps(environment))
    ceiling = timing.ceilings(args.device)
    print(
        f"copy {ceiling['copy_bytes_per_s'] / 1e9:.1f} GB/s, "
        f"float32 product {ceiling['mm_float32_flop_per_s'] / 1e9:.0f} GFLOP/s"
    )
    rows, red = [], []
    for name in args.names or list(REGISTRY):
        bench = REGISTRY[name]
        if args.device not in bench.devices:
            continue
        if not args.skip_tests and not tests_are_green(bench):
            red.append(name)
            print(f"{name}: its tests ({bench.tests}) are red; no figure is taken", file=sys.stderr)
            continue
        for shape_name in bench.shapes:
            if args.shape and shape_name not in args.shape:
                continue
            if shape_name in bench.long and not (args.shape or args.long):
                print(f"{name:<22} {shape_name}: takes minutes, left out; --long runs it")
                continue
            rows.append(run_entry(bench, shape_name, args.device, ceiling, args.rounds))
            print_row(rows[-1])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        partial = args.out.with_suffix(".partial")
        partial.write_text(
            json.dumps({"environment": environment, "ceilings": ceiling, "results": rows}, indent=1) + "\n"
        )
        partial.replace(args.out)
        print(f"wrote {args.out}")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
