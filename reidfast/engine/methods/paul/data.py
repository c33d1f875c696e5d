# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Batches of PAUL: images and their surrogates, and in pre-training pairs of one identity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from reidfast.data import ImageCache, ReidData
from reidfast.data.samplers import PairSampler, ShuffleSampler
from reidfast.data.transforms import SurrogateTransform, Views
from reidfast.engine.data import ImageModule, shuffled_rows
from reidfast.engine.methods.paul.config import PatchDataConfig

MEMORY_PASS = 2**31 - 1  # the epoch that the pass over the images before the first epoch draws as


class ViewsDataModule(ImageModule):
    """Batches of images and their surrogates.

    Args:
        data: The data set.
        config: Sizes and transforms.
        seed: Seed of what is drawn.
    """

    config: PatchDataConfig

    def make_cache(self) -> ImageCache:
        """A cache of the images at their own sizes: surrogates are made before resizing."""
        return ImageCache(self.data.train)

    def _sampler(self) -> ShuffleSampler:
        return ShuffleSampler(len(self.data.train), self.config.batch, seed=self.seed, drop_last=False)

    def loader(self, epoch: int) -> DataLoader[Any]:
        """Batches (views [B, 2, 3, H, W], pids, cameras, rows): every image once, with its surrogate."""
        c = self.config
        surrogate = SurrogateTransform(c.height, c.width, mode=c.surrogates, flip=c.flip, filter=c.filter)
        return self.image_loader(epoch, self._sampler(), Views(self.transform(), surrogate))

    def memory_loader(self) -> DataLoader[Any]:
        """Batches (images [B, 3, H, W], pids, cameras, rows) of the pass that fills the memory."""
        return self.image_loader(MEMORY_PASS, self._sampler())

    def plain_rows(self, count: int) -> NDArray[np.int64]:
        """At most `count` rows, drawn by the seed."""
        return shuffled_rows(len(self.data.train), count, self.seed)


class PairsDataModule(ViewsDataModule):
    """Every image once an epoch, each beside a random image of its identity (it may be the same one)."""

    def __init__(self, data: ReidData, config: PatchDataConfig, seed: int = 0) -> None:
        super().__init__(data, config, seed)
        self.classes, self.labels = np.unique(data.train.pids, return_inverse=True)

    def loader(self, epoch: int) -> DataLoader[Any]:
        """Batches (images [2 B, 3, H, W], classes, cameras, rows)."""
        sampler = PairSampler(self.labels, self.config.batch, seed=self.seed)
        return self.image_loader(epoch, sampler, labels=self.labels)
