# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`torchrun --nproc-per-node N -m reidfast evaluate ...`: images and gallery shared out over the processes."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np


def launched_group(device: str = "cpu") -> Any:
    """The process group of what torchrun started; None in a process on its own."""
    import torch.distributed as dist

    from reidfast.engine.training import join_processes

    return dist.group.WORLD if join_processes("cpu" if device == "cpu" else "auto") else None


def leave(group: Any) -> None:
    """End this process, whole: gloo's threads may abort an interpreter that is shutting down."""
    import torch.distributed as dist

    sys.stdout.flush()
    sys.stderr.flush()
    dist.barrier(group)
    dist.destroy_process_group()
    os._exit(0)


def part_of(n: int, group: Any, step: int = 1) -> slice:
    """This process's share of n rows, in whole steps."""
    import torch.distributed as dist

    index, count = dist.get_rank(group), dist.get_world_size(group)
    steps = -(-n // step)
    begin, end = (min(n, steps * i // count * step) for i in (index, index + 1))
    return slice(begin, end)


def extract_together(args: argparse.Namespace, data: Any, out: Path | None, group: Any) -> Any:
    """Features of query and gallery images: every process runs the model over its batches and gets all rows.

    The batches are those of one process, so the features are too. `out` is written by process 0, at the end.
    """
    import torch

    from reidfast._shards import raise_everywhere, shards_of
    from reidfast.engine import FeatureFile, FeatureTable, extract, write_features

    from ._common import build_model

    shards = shards_of("evaluate", group)
    tables = {name: data.splits[name] for name in ("query", "gallery")}
    file = None
    with raise_everywhere(shards):
        model = build_model(args)
        parts = {name: table.select(part_of(len(table), group, args.batch)) for name, table in tables.items()}
        if any(len(table) for table in parts.values()):
            file = extract(
                model, parts, None, size=args.size, filter=args.filter, batch=args.batch, device=args.device,
                dtype=args.dtype, flip=args.flip, workers=args.workers,
                show_progress=shards.index == 0 and not getattr(args, "quiet", False),
            )  # fmt: skip
    widths = torch.tensor([0 if file is None else file.query.features.shape[1]])
    width = int(shards.concatenate(widths).max())
    whole = {}
    for name, table in tables.items():
        rows = np.empty((0, width), args.dtype) if file is None else file[name].features
        together = shards.concatenate(torch.from_numpy(rows)).numpy()
        whole[name] = FeatureTable(together, table.pids, table.camids, table.paths)
    settings = {"size": list(args.size), "filter": args.filter, "batch": args.batch, "dtype": args.dtype}
    meta = {
        "data": data.name,
        "model": args.model,
        "weights": Path(args.weights).name if args.weights else None,
        "roots": {name: str(table.root.absolute()) for name, table in tables.items()},
        "settings": {**settings, "flip": args.flip},
    }
    result = FeatureFile(whole, meta)
    if out is not None and shards.index == 0:
        write_features(out, result)
    return result
