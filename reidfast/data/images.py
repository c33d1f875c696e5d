# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""From a table of paths to normalised tensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from reidfast.data.records import Records

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def decode(path: str | os.PathLike[str]) -> Image.Image:
    """The picture in `path` as RGB, fully read.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not an image, or one that is cut off; the message names the file.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"decode: no such image: {os.fspath(path)}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"decode: expected an image in {os.fspath(path)}, got: {said}") from None


def resize(image: Image.Image, height: int, width: int, filter: str = "bilinear") -> Image.Image:
    """Pillow's resize (area-aware when it shrinks), left out where the size is right already."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), FILTERS[filter])


def to_float(image: Image.Image) -> Tensor:
    """RGB picture -> float32 [3,H,W] in [0,1]."""
    pixels = np.array(image, np.uint8)  # a copy: Pillow's buffer is read-only
    return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32).div_(255)


def normalize(image: Tensor, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> Tensor:
    """`(image - mean) / std` per channel, in place, for [...,3,H,W]."""
    shape = (-1, 1, 1)
    return image.sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))


class EvalTransform:
    """Resize and ImageNet-normalise: what every extractor sees at test time.

    Args:
        height: Height of the result in pixels.
        width: Width of the result in pixels.
        filter: Resize filter: `bilinear` (default; the peers'), `bicubic`, `box`, `hamming`, `lanczos`, `nearest`.
    """

    def __init__(self, height: int = 256, width: int = 128, filter: str = "bilinear") -> None:
        if filter not in FILTERS:
            raise ValueError(f"EvalTransform: expected filter in {', '.join(FILTERS)}, got {filter!r}")
        if height < 1 or width < 1:
            raise ValueError(f"EvalTransform: expected height and width of at least 1, got {height} x {width}")
        self.height, self.width, self.filter = int(height), int(width), filter

    def __call__(self, image: Image.Image) -> Tensor:
        return normalize(to_float(resize(image, self.height, self.width, self.filter)))

    def __repr__(self) -> str:
        return f"EvalTransform(height={self.height}, width={self.width}, filter={self.filter!r})"


class ImageDataset(Dataset[tuple[Any, int, int, int]]):
    """`(transform(image), pid, camid, index)` for every row of a table.

    A transform with the attribute `random = True` is called as `transform(image, rng)`, with a generator made from
    (seed, epoch, index, copy). Then an index may be `row + copy * n`: the row once more in the same epoch, changed in
    another way (`IdentitySampler(mark_repeats=True)`); the fourth value returned is the row.

    Args:
        records: The table.
        transform: From an RGB picture to whatever the loader collates. `EvalTransform` at test time.
        decode: From `(records, index)` to an RGB picture; default: read the file. The decoded-image cache goes here.
        labels: What to return in place of the pid, (n,): the classes of a classifier, say.
        seed: Seed of random transforms.
    """

    def __init__(
        self,
        records: Records,
        transform: Callable[..., Any],
        decode: Callable[[Records, int], Image.Image] | None = None,
        *,
        labels: ArrayLike | None = None,
        seed: int = 0,
    ) -> None:
        self.records = records
        self.transform = transform
        self.decode = decode
        self.seed = int(seed)
        self.labels = records.pids if labels is None else np.asarray(labels)
        if self.labels.shape != (len(records),):
            raise ValueError(f"ImageDataset: expected labels of shape ({len(records)},), got {self.labels.shape}")
        # shared memory: workers that are already running see a new epoch too
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Random transforms draw anew each epoch."""
        self._epoch.fill_(int(epoch))

    def __len__(self) -> int:
        return len(self.records)

    def rng(self, index: int) -> np.random.Generator:
        """The generator that a random transform of `row + copy * n` gets in this epoch."""
        copy, row = divmod(int(index), max(1, len(self)))
        counter = np.array([0, row, copy, int(self._epoch)], np.uint64)
        key = np.array([self.seed & (2**64 - 1), 0x1346], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def __getitem__(self, index: int) -> tuple[Any, int, int, int]:
        i, n = int(index), len(self)
        random = getattr(self.transform, "random", False)
        if i < 0 or (i >= n and not random) or n == 0:
            raise IndexError(f"ImageDataset: expected an index in 0..{n - 1}, got {i}")
        row, records = i % n, self.records
        image = decode(records.absolute(row)) if self.decode is None else self.decode(records, row)
        out = self.transform(image, self.rng(i)) if random else self.transform(image)
        return out, int(self.labels[row]), int(records.camids[row]), row
