# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast frames`: frames of tracklets in a picture, with their quality scores and weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._common import add_command, add_data, add_model, build_model, check_writable, load_data, positive, set_threads


def add(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = add_command(subparsers, "frames", run, "draw frames of tracklets, with quality scores and weights")
    parser.add_argument("out", metavar="PNG", help="the picture to write")
    parser.add_argument("--split", choices=("train", "query", "gallery"), default="gallery", help="default: gallery")
    parser.add_argument("--tracklets", type=int, nargs="+", metavar="I", help="which ones (default: the first four)")
    parser.add_argument("--frames", type=positive, default=12, metavar="N", help="drawn of each (default: 12)")
    add_data(parser)
    add_model(parser, required=False)


def run(args: argparse.Namespace) -> None:
    """Draw, and say what was drawn."""
    from reidfast.data import Tracklets
    from reidfast.report.tracklets import describe_tracklets, draw_tracklets

    set_threads(args)
    check_writable(Path(args.out), "OUT", (".png", ".jpg"))
    data = load_data(args)
    records = data.splits[args.split]
    if "tracklet" not in records.extra:
        raise ValueError(f"frames: expected a data set of tracklets, got {data.name} without any in {args.split}")
    tracklets = Tracklets.of(records)
    wanted = args.tracklets if args.tracklets else range(min(4, len(tracklets)))
    for i in wanted:
        if not 0 <= i < len(tracklets):
            raise ValueError(f"--tracklets: expected 0..{len(tracklets) - 1} of {args.split}, got {i}")
    model = build_model(args) if args.model else None
    if model is not None and not hasattr(model, "encode_frames"):
        raise ValueError(f"--model: expected a model that scores frames (qan), got {args.model}")
    rows = describe_tracklets(
        model,
        tracklets.select(list(wanted)),
        frames=args.frames,
        size=args.size or (256, 128),
        filter=args.filter or "bilinear",
    )
    draw_tracklets(rows).save(args.out)
    print(f"{args.out}: {len(rows)} tracklets of {data.name}, {args.split}")
