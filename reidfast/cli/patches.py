# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast patches`: the patches of a PatchNet (PAUL) drawn on images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._common import (
    add_command,
    add_data,
    add_model,
    build_model,
    check_choice,
    check_writable,
    load_data,
    positive,
    set_threads,
)

SPLITS = ("train", "query", "gallery")


def add(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = add_command(subparsers, "patches", run, "draw the patches that PAUL's network looks at on images")
    add_model(parser)
    add_data(parser)
    parser.add_argument("--split", default="query", help=f"{', '.join(SPLITS)} (default: query)")
    parser.add_argument("--images", type=positive, default=8, metavar="N", help="spread over the split (default: 8)")
    parser.add_argument("--out", default="patches.png", metavar="PNG", help="the picture (default: patches.png)")


def run(args: argparse.Namespace) -> None:
    """Draw, and say where."""
    import numpy as np
    import torch

    from reidfast.data import decode
    from reidfast.engine.extract import pick_device
    from reidfast.models import PatchNet
    from reidfast.report import draw_patches

    set_threads(args)
    check_choice("--split", args.split, SPLITS)
    check_writable(Path(args.out), "--out", (".png", ".jpg"))
    model = build_model(args)
    if not isinstance(model, PatchNet):
        raise ValueError(f"--model: expected a PatchNet (paul, or a run of it), got {type(model).__name__}")
    records = load_data(args).splits[args.split]
    if not len(records):
        raise ValueError(f"--split: {args.data} has no images in {args.split}")
    rows = np.unique(np.linspace(0, len(records) - 1, min(args.images, len(records))).round().astype(int))
    images = [decode(records.absolute(int(row))) for row in rows]
    torch.manual_seed(0)
    sheet = draw_patches(model.to(pick_device(args.device)), images, size=args.size, filter=args.filter)
    sheet.save(args.out)
    print(args.out)
