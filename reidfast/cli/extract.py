# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast extract`: features of a data set into a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._common import (
    add_command,
    add_data,
    add_json,
    add_model,
    build_model,
    check_writable,
    load_data,
    origin,
    print_json,
    run_extract,
    set_threads,
)


def add(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = add_command(subparsers, "extract", run, "run a model over the images of a data set and keep the features")
    parser.add_argument("out", metavar="FEATURES", help="file to write: .npz or .safetensors; resumed if interrupted")
    parser.add_argument(
        "--splits", nargs="+", choices=("train", "query", "gallery"), help="which images (default: query gallery)"
    )
    parser.add_argument("--sets", action="store_true", help="one feature a tracklet (video sets); not resumable")
    parser.add_argument("--overwrite", action="store_true", help="replace a file made with other settings")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_data(parser)
    add_model(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Extract, and say what was written."""
    set_threads(args)
    data = load_data(args)
    for name in args.splits or ():
        if not len(data.splits[name]):
            raise ValueError(f"--splits: {data.name} has no {name} images")
    if args.sets:
        file = extract_tracklets(args, data)
    else:
        file = run_extract(args, data, Path(args.out), overwrite=args.overwrite)
    counts = {name: len(table) for name, table in file.splits.items()}
    size = next(iter(file.splits.values())).features.shape[1]
    if args.json:
        print_json({"features": args.out, "size": size, "rows": counts, "meta": dict(file.meta)})
    else:
        rows = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        print(f"{args.out}: {rows}, {size} numbers each")


def extract_tracklets(args: argparse.Namespace, data: Any) -> Any:
    """`--sets`: whole tracklets, written when all are there."""
    from reidfast.engine import write_features
    from reidfast.engine.sets import extract_sets

    out = Path(args.out)
    check_writable(out, "FEATURES", (".npz", ".safetensors"))
    if out.exists() and not args.overwrite:
        raise FileExistsError(f"extract: {out} exists; give another name or --overwrite")
    names = args.splits or [n for n in ("query", "gallery") if len(data.splits[n])] or ["train"]
    model = build_model(args)
    tables = {name: data.splits[name] for name in names}
    file = extract_sets(
        model,
        tables,
        size=args.size,
        filter=args.filter,
        batch=args.batch,
        device=args.device,
        workers=args.workers or 2,
        show_progress=not args.quiet,
        meta=origin(args, data, tables),
    )
    write_features(out, file)
    return file
