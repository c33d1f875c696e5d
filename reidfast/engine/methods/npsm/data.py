# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Pairs of images that show the same person."""

from __future__ import annotations

from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from reidfast.data.search import SearchData
from reidfast.engine.data import collated
from reidfast.engine.methods.npsm.config import SearchDataConfig
from reidfast.engine.person_search import SceneMaps, Sizing
from reidfast.models.npsm import RegionEmbedder

Ints = NDArray[np.int64]


class Pairs(NamedTuple):
    """A batch: B pairs of a person in one image and the same person in another.

    Attributes:
        images: (n,) numbers of the images.
        pixels: (n, 3, H, W), or None where maps are kept.
        query_image: (B,) position in `images` of the query.
        target_image: (B,) position of the image to search.
        query_box: (B,) row of the scenes' boxes.
        target_box: (B,) row of the scenes' boxes.
        draws: (B,) uniform numbers: below the ramp's value, the attention chooses the regions.
    """

    images: Ints
    pixels: Tensor | None
    query_image: Ints
    target_image: Ints
    query_box: Ints
    target_box: Ints
    draws: NDArray[np.float64]


class _PairDataset(Dataset[Pairs]):
    """The batches of one epoch, known beforehand."""

    def __init__(self, batches: list[Pairs], maps: SceneMaps, pixels: bool) -> None:
        self.batches, self.maps, self.pixels = batches, maps, pixels

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> Pairs:
        batch = self.batches[i]
        if not self.pixels:
            return batch
        images = [self.maps.image(int(k)) for k in batch.images]
        height, width = (max(x.shape[d] for x in images) for d in (1, 2))
        filled = [nn.functional.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images]
        return batch._replace(pixels=torch.stack(filled))


class PairModule(lightning.LightningDataModule):
    """Pairs of images that show the same person; what an epoch draws depends on (seed, epoch) alone.

    Each named box whose person is in another training image too is a query once an epoch, with one of those images.

    Args:
        data: The set.
        config: Pairs in a step, sizes.
        seed: Seed of what is drawn.
        model: Whose maps are kept.
    """

    def __init__(self, data: SearchData, config: SearchDataConfig, seed: int, model: RegionEmbedder) -> None:
        super().__init__()
        self.data, self.config, self.seed = data, config, seed
        scenes = data.train
        named = np.flatnonzero(scenes.pids >= 0)
        self.classes = np.unique(scenes.pids[named])
        if not len(self.classes):
            raise ValueError(f"train: {data.name} has no training images with named people")
        self.labels = np.full(len(scenes.pids), -1, np.int64)
        self.labels[named] = np.searchsorted(self.classes, scenes.pids[named])
        sizing = Sizing(config.short, config.long, config.scale)
        self.maps = SceneMaps(model, scenes, sizing, keep=config.keep)
        self.partners: dict[int, Ints] = {}
        for c in range(len(self.classes)):
            rows = np.flatnonzero(self.labels == c)
            for row in rows:
                others = rows[scenes.box_images[rows] != scenes.box_images[row]]
                if len(others):
                    self.partners[int(row)] = others
        if not self.partners:
            raise ValueError(f"train: {data.name} has nobody who is in two training images")

    def batches(self, epoch: int) -> list[Pairs]:
        """The pairs of an epoch."""
        key, counter = np.array([self.seed, 0x9A125], np.uint64), np.array([0, 0, 0, epoch], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key, counter=counter))
        rows = np.array(sorted(self.partners), np.int64)
        rows = rows[np.argsort(rng.random(len(rows)), kind="stable")]
        chosen = np.array([self.partners[int(r)][int(rng.random() * len(self.partners[int(r)]))] for r in rows])
        draws, where, out = rng.random(len(rows)), self.data.train.box_images, []
        for start in range(0, len(rows), self.config.pairs):
            part = slice(start, start + self.config.pairs)
            images = np.unique(np.concatenate([where[rows[part]], where[chosen[part]]]))
            first, second = np.searchsorted(images, where[rows[part]]), np.searchsorted(images, where[chosen[part]])
            out.append(Pairs(images, None, first, second, rows[part], chosen[part], draws[part]))
        return out

    def loader(self, epoch: int) -> DataLoader[Any]:
        """Batches of one epoch."""
        dataset = _PairDataset(self.batches(epoch), self.maps, self.config.keep == "none")
        return DataLoader(dataset, batch_size=None, num_workers=self.config.workers, collate_fn=collated)

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of the trainer's current epoch."""
        return self.loader(self.trainer.current_epoch if self.trainer else 0)
