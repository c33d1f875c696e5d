# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast frames`: frames of tracklets in a picture, with quality scores, or attention maps and temporal weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._common import add_command, add_data, add_model, build_model, check_writable, load_data, positive, set_threads


def add(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = add_command(
        subparsers, "frames", run, "draw frames of tracklets, with quality scores or attention, and weights"
    )
    parser.add_argument("out", metavar="PNG", help="the picture to write")
    parser.add_argument("--split", choices=("train", "query", "gallery"), default="gallery", help="default: gallery")
    parser.add_argument("--tracklets", type=int, nargs="+", metavar="I", help="which ones (default: the first four)")
    parser.add_argument("--frames", type=positive, metavar="N", help="drawn of each (default: 12; of a drsta 6)")
    add_data(parser)
    add_model(parser, required=False)


def run(args: argparse.Namespace) -> None:
    """Draw, and say what was drawn."""
    from reidfast.data import Tracklets
    from reidfast.models import DRSTA
    from reidfast.report.tracklet_attention import explain_tracklet, stack_pictures
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
    look: dict[str, Any] = {"size": args.size or (256, 128), "filter": args.filter or "bilinear"}
    if isinstance(model, DRSTA):
        n = args.frames or 6
        stack_pictures([explain_tracklet(model, tracklets[i], records, frames=n, **look) for i in wanted]).save(
            args.out
        )
    elif model is None or hasattr(model, "encode_frames"):
        chosen = tracklets.select(list(wanted))
        draw_tracklets(describe_tracklets(model, chosen, frames=args.frames or 12, **look)).save(args.out)
    else:
        raise ValueError(f"--model: expected a model that scores frames (qan, drsta), got {args.model}")
    print(f"{args.out}: {len(wanted)} tracklets of {data.name}, {args.split}")
