# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast export`: a run or a model as ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._common import add_command, add_json, add_threads, build_model, check_writable, print_json, set_threads, size


def add(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = add_command(subparsers, "export", run, "write a model as ONNX, compared with itself through onnxruntime")
    parser.add_argument(
        "model", metavar="RUN", help="a run: its folder, a .ckpt, or weights with a card; or a model's name"
    )
    parser.add_argument("--out", default="model.onnx", metavar="ONNX", help="the file (default: model.onnx)")
    parser.add_argument("--weights", metavar="FILE", help="of a model given by its name")
    parser.add_argument("--not-strict", action="store_true", help="take the weights that fit and leave the others")
    parser.add_argument("--model-option", metavar="KEY=VALUE", action="append", default=[], help="may be repeated")
    parser.add_argument("--size", type=size, metavar="HxW", help="of the input (default: the run's, else 256x128)")
    parser.add_argument("--opset", type=int, default=18, help="version of ONNX's operators (default: 18)")
    parser.add_argument("--exporter", default="dynamo", help="dynamo (default) or torchscript")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest relative difference (default: 1e-4)")
    parser.set_defaults(filter=None)
    add_threads(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Export, compare, and say how far apart they are."""
    from reidfast.engine.export import export_onnx

    set_threads(args)
    check_writable(Path(args.out), "--out", (".onnx",))
    model = build_model(args)
    done = export_onnx(
        model,
        args.out,
        size=args.size,
        opset=args.opset,
        exporter=args.exporter,
        tolerance=args.tolerance,
        meta={"model": Path(args.model).name, "filter": args.filter},
    )
    if args.json:
        print_json({**done._asdict(), "path": str(done.path), "size": list(args.size)})
        return
    height, width = args.size
    print(
        f"{done.path}: images [batch, 3, {height}, {width}] -> features [batch, {done.feature_size}], "
        f"opset {done.opset}"
    )
    print(
        f"onnxruntime agrees with the model to {done.error:.1e} of the largest value (batches of "
        f"{', '.join(map(str, done.batches))})"
    )
