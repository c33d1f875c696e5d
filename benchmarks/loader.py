# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A batch of training images in one process: decoded each time, from the cache, and from the cache in one piece."""

from __future__ import annotations

import itertools
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.registry import Bench, Step, register
from reidfast.data import BatchAugment, EvalTransform, ImageCache, ImageDataset, TrainTransform, write_synthetic


@lru_cache(maxsize=4)
def _images(height: int, width: int) -> tuple[Any, Any, Any]:
    """256 synthetic pictures on disk (128x64 JPEG, as Market-1501) and their cache; kept as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="reidfast-bench-")
    table = write_synthetic(Path(folder.name) / "people", ids=16, cameras=4, images=4, test=0.0).train
    return folder, table, ImageCache(table, height, width, folder=Path(folder.name) / "cache")


def providers(shape: dict[str, Any], device: str) -> dict[str, Step]:
    height, width, size = shape["height"], shape["width"], shape["batch"]
    _, table, cache = _images(height, width)
    transform = TrainTransform(height, width)
    decoded, cached = ImageDataset(table, transform), ImageDataset(table, transform, decode=cache)
    evaluated = ImageDataset(table, EvalTransform(height, width))
    augment, generator = BatchAugment().to(device), torch.Generator(device).manual_seed(0)
    batches = itertools.cycle(np.random.default_rng(0).permutation(len(table))[: 256 // size * size].reshape(-1, size))

    def collate(dataset: ImageDataset) -> torch.Tensor:
        return torch.stack([dataset[i][0] for i in next(batches).tolist()]).to(device)

    return {
        "decode, no augmentation": lambda: collate(evaluated),
        "decode each time": lambda: collate(decoded),
        "cache, image by image": lambda: collate(cached),
        "reidfast": lambda: augment(cache.batch(next(batches)).to(device), generator),
    }


register(
    Bench(
        name="loader",
        shapes={
            "128x64": {"height": 128, "width": 64, "batch": 64},
            "256x128": {"height": 256, "width": 128, "batch": 64},
        },
        providers=providers,
        bytes=lambda s: s["batch"] * s["height"] * s["width"] * 3 * 5.0,
        flops=lambda s: s["batch"] * s["height"] * s["width"] * 3 * 2.0,
        mode="one batch",
        tests="tests/data",
        quick=("128x64",),
    )
)
