# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`torchrun --nproc-per-node N -m reidfast evaluate ...`: images and gallery shared out over the processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def launched_group(device: str = "cpu") -> Any:
    """The process group of what torchrun started; None in a process on its own."""
    import torch.distributed as dist

    from reidfast.engine.training import join_processes

    return dist.group.WORLD if join_processes("cpu" if device == "cpu" else "auto") else None


def part_of(n: int, group: Any, step: int = 1) -> slice:
    """This process's share of n rows, in whole steps."""
    import torch.distributed as dist

    index, count = dist.get_rank(group), dist.get_world_size(group)
    steps = -(-n // step)
    begin, end = (min(n, steps * i // count * step) for i in (index, index + 1))
    return slice(begin, end)


def extract_together(
    prepare: Callable[[], tuple[Any, dict[str, Any]]],
    tables: Mapping[str, Any],
    out: Path | None,
    group: Any,
    *,
    batch: int,
    dtype: str,
    meta: Mapping[str, Any],
    show_progress: bool,
) -> Any:
    """Features of tables of images: every process runs the model over its batches and gets all rows.

    The batches are those of one process, so the features are too. If any process fails, all raise.

    Args:
        prepare: Makes the model and the options of `extract` (`batch` and `dtype` among them).
        tables: Tables of images by split name.
        out: File that process 0 writes at the end; None: none.
        group: The processes.
        batch: Images that go through the network at a time.
        dtype: Type of the features.
        meta: Kept in the file.
        show_progress: Whether process 0 shows its progress.
    """
    import torch

    from reidfast._shards import raise_everywhere, shards_of
    from reidfast.engine import FeatureFile, FeatureTable, extract, write_features

    shards = shards_of("evaluate", group)
    file: FeatureFile | None = None
    options: dict[str, Any] = {}
    with raise_everywhere(shards):
        model, options = prepare()
        parts = {name: table.select(part_of(len(table), group, batch)) for name, table in tables.items()}
        if any(len(table) for table in parts.values()):
            file = extract(model, parts, None, **options, show_progress=shards.index == 0 and show_progress)
    widths = torch.tensor([0 if file is None else file.query.features.shape[1]])
    width = int(shards.concatenate(widths).max())
    gathered = {}
    for name, table in tables.items():
        part = np.empty((0, width), dtype) if file is None else file[name].features
        features = shards.concatenate(torch.from_numpy(part)).numpy()
        gathered[name] = FeatureTable(features, table.pids, table.camids, table.paths)
    settings = {name: options[name] for name in ("filter", "batch", "dtype", "flip")}
    result = FeatureFile(gathered, {**meta, "settings": {"size": list(options["size"]), **settings}})
    if out is not None and shards.index == 0:
        write_features(out, result)
    return result
