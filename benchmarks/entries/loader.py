# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A batch of training images in one process: decoded each time, from the cache, and from the cache in one piece; and
the whole training step that it feeds. Images per second are `batch / time`.
"""

from __future__ import annotations

import itertools
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.registry import Step, register
from reidfast.data import BatchAugment, EvalTransform, ImageCache, ImageDataset, TrainTransform, write_synthetic
from reidfast.losses import CrossEntropyLoss, TripletLoss
from reidfast.models import create_model


@lru_cache(maxsize=4)
def _images(height: int, width: int) -> tuple[Any, Any, Any]:
    """256 synthetic pictures on disk (128x64 JPEG, as Market-1501) and their cache; kept as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="reidfast-bench-")
    table = write_synthetic(Path(folder.name) / "people", ids=16, cameras=4, images=4, test=0.0).train
    return folder, table, ImageCache(table, height, width, folder=Path(folder.name) / "cache")


def _step(height: int, width: int, device: str) -> Any:
    """One step of a strong baseline over OSNet x0.25, from a batch of images and identities."""
    torch.manual_seed(0)
    model = create_model("strong_baseline", backbone="osnet_x0_25", num_classes=16).to(device)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=3.5e-4)
    cross_entropy, triplet = CrossEntropyLoss(), TripletLoss(0.3)

    def step(images: torch.Tensor) -> torch.Tensor:
        labels = torch.arange(len(images), device=images.device) // 4 % 16
        out = model(images)
        loss = cross_entropy(out.logits[:, 0], labels) + triplet(out.features, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def step_providers(shape: dict[str, Any], device: str) -> dict[str, Step]:
    step = _step(shape["height"], shape["width"], device)
    ready = providers(shape, device)
    # Several, for on one alone the gradients soon vanish, and arithmetic with denormal numbers is slow.
    fixed = itertools.cycle([ready["reidfast"]() for _ in range(4)])

    def feed(batch: Step) -> Step:
        return lambda: step(batch())

    wanted = ("decode each time", "cache, image by image", "reidfast")
    return {"no loading at all": lambda: step(next(fixed))} | {name: feed(ready[name]) for name in wanted}


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

register(
    name="training_step",
    shapes={"128x64": {"height": 128, "width": 64, "batch": 64}},
    providers=step_providers,
    bytes=lambda s: s["batch"] * s["height"] * s["width"] * 3 * 5.0,
    flops=lambda s: 6.0 * s["batch"] * 20e6,  # OSNet x0.25 at 128 x 64: some 20 million multiply-adds an image
    mode="loading, forward, backward, Adam",
    tests="tests/data",
)
