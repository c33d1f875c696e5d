# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Data modules: cached training images, and a loader for each epoch."""

from __future__ import annotations

from typing import Any

import lightning
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reidfast.data import Records, ReidData
from reidfast.data.cache import ImageCache
from reidfast.data.images import EvalTransform, ImageDataset
from reidfast.data.samplers import IdentitySampler, ShuffleSampler
from reidfast.data.transforms import BatchAugment, TrainTransform
from reidfast.engine.config import DataConfig, ImageConfig


class ImageModule(lightning.LightningDataModule):
    """Training images, decoded once into a cache; what is drawn depends on (seed, epoch, rank, world size) alone.

    A method's module gives `loader`.

    Args:
        data: The data set.
        config: Sizes and transforms.
        seed: Seed of what is drawn.
    """

    config: ImageConfig

    def __init__(self, data: ReidData, config: ImageConfig, seed: int = 0) -> None:
        super().__init__()
        self.data, self.config, self.seed = data, config, seed
        if not len(data.train):
            raise ValueError(f"train: {data.name} has no training images")
        self._cache: ImageCache | None = None

    def prepare_data(self) -> None:
        """Make the cache of decoded images, on one process."""
        self.open_cache()

    def open_cache(self) -> ImageCache | None:
        """The cache of decoded images; None where the settings ask for none."""
        if self.config.cache and self._cache is None:
            self._cache = self.make_cache()
        return self._cache

    def make_cache(self) -> ImageCache:
        """A cache of the images at the size of the network's input."""
        return ImageCache(self.data.train, self.config.height, self.config.width, filter=self.config.filter)

    def transform(self) -> TrainTransform:
        """The random changes of training images."""
        c = self.config
        return TrainTransform(c.height, c.width, flip=c.flip, pad=c.pad, erase=c.erase, filter=c.filter)

    def loader(self, epoch: int) -> DataLoader[Any]:
        """Batches of one epoch."""
        raise NotImplementedError

    def image_loader(
        self, epoch: int, sampler: Any, transform: Any = None, labels: ArrayLike | None = None
    ) -> DataLoader[Any]:
        """Batches (images [B, 3, H, W], labels, cameras, rows) of what a batch sampler draws in an epoch.

        Args:
            epoch: The epoch.
            sampler: Batch sampler over the rows of the training table.
            transform: From a picture to what is collated; default: `transform()`.
            labels: Class of each row; default: its identity.
        """
        transform = self.transform() if transform is None else transform
        dataset = ImageDataset(self.data.train, transform, self.open_cache(), labels=labels, seed=self.seed)
        dataset.set_epoch(epoch)
        sampler.set_epoch(epoch)
        return DataLoader(dataset, batch_sampler=sampler, num_workers=self.config.workers)

    def plain_rows(self, count: int) -> NDArray[np.int64]:
        """At most `count` rows, spread evenly over the training table."""
        n = len(self.data.train)
        return np.unique(np.linspace(0, n - 1, min(count, n)).round().astype(np.int64))

    def plain_images(self, count: int) -> Tensor:
        """Some training images [n, 3, H, W], prepared as for evaluation."""
        c = self.config
        dataset = ImageDataset(self.data.train, EvalTransform(c.height, c.width, c.filter), self.open_cache())
        return torch.stack([dataset[int(row)][0] for row in self.plain_rows(count)])

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of the trainer's current epoch (the trainer asks anew each epoch)."""
        return self.loader(self.trainer.current_epoch if self.trainer else 0)


def shuffled_rows(n: int, count: int, seed: int) -> NDArray[np.int64]:
    """At most `count` of n rows, drawn by `seed`."""
    return np.random.Generator(np.random.Philox(seed)).permutation(n)[:count]


class ReidDataModule(ImageModule):
    """P x K batches of a data set's training images.

    Args:
        data: The data set.
        config: Sizes, sampler, transforms.
        seed: Seed of what is drawn.
    """

    config: DataConfig

    def __init__(self, data: ReidData, config: DataConfig, seed: int = 0) -> None:
        super().__init__(data, config, seed)
        self.classes, self.labels = np.unique(data.train.pids, return_inverse=True)
        self._augment = BatchAugment(config.flip, config.pad, config.erase) if config.augment == "batch" else None
        self._drawn: torch.Generator | None = None

    def loader(self, epoch: int) -> DataLoader[Any]:
        """Batches (images [P*K, 3, H, W], classes, cameras, rows) of one epoch.

        Images are float32, changed and normalised; with `augment="batch"` uint8, as they are in the cache.
        """
        c = self.config
        sampler = self.sampler(*self._share())
        if c.augment != "batch":
            return self.image_loader(epoch, sampler, labels=self.labels)
        cache = self.open_cache()
        if cache is None:
            raise ValueError("data.augment: 'batch' reads from the cache; expected data.cache true, got false")
        sampler.set_epoch(epoch)
        batches = _CachedBatches(cache, self.data.train, self.labels)
        return DataLoader(batches, batch_sampler=sampler, num_workers=c.workers, collate_fn=collated)

    def sampler(self, ids: int, images: int) -> IdentitySampler | ShuffleSampler:
        """Which rows come together: `ids` x `images` in each batch of each process."""
        return IdentitySampler(
            self.labels,
            ids,
            images,
            camids=self.data.train.camids,
            camera_aware=self.config.camera_aware,
            mark_repeats=True,
            seed=self.seed,
        )

    def _share(self) -> tuple[int, int]:
        """Identities and images of each in a batch of this process."""
        c = self.config
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if c.split_ids and c.ids % world:
            raise ValueError(f"data.split_ids: expected data.ids to be a multiple of {world} processes, got {c.ids}")
        return c.ids // world if c.split_ids else c.ids, c.images

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of the trainer's current epoch."""
        self._drawn = None
        return super().train_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """With `augment="batch"`, images are changed and normalised here, on the device that trains."""
        if self._augment is None:
            return batch
        images = batch[0]
        if self._drawn is None:
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
            epoch = self.trainer.current_epoch if self.trainer else 0
            self._drawn = torch.Generator(images.device).manual_seed(epoch_seed(self.seed, epoch, rank))
        return (self._augment.to(images.device)(images, self._drawn), *batch[1:])


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """The seed of an epoch's draws in one process."""
    return (seed * 1_000_003 + epoch) * 4_099 + rank


def collated(batch: Any) -> Any:
    """The batch itself: the `collate_fn` of a dataset that gives whole batches."""
    return batch


class _CachedBatches(Dataset[Any]):
    """Whole batches of the cache: (uint8 images, classes, cameras, rows)."""

    def __init__(self, cache: ImageCache, records: Records, labels: Any) -> None:
        self.cache, self.labels, self.camids = cache, torch.from_numpy(labels), torch.tensor(records.camids)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = torch.tensor(indices) % len(self)  # copies of a row in one epoch are marked by multiples
        return self.cache.batch(rows.numpy()), self.labels[rows], self.camids[rows], rows
