# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Random numbers that depend on what they are for, and on nothing else.

Each purpose (an identity, a camera, one image) has its own Philox stream, addressed by key and counter. Only the raw
64-bit words are taken from numpy, so no change of numpy's distributions can change a picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
MASK = (1 << 64) - 1


class Stream:
    """A stream named by a domain and up to three integers.

    Args:
        seed: Seed of the whole synthetic world.
        domain: What the numbers are for.
        address: Up to three integers (pid, camid, index).
    """

    def __init__(self, seed: int, domain: str, *address: int) -> None:
        name = int.from_bytes(domain.encode().ljust(8, b"\0")[:8], "little")
        words = [0, *(int(a) & MASK for a in address)]
        self._raw = np.random.Philox(
            key=np.array([seed & MASK, name], np.uint64), counter=np.array(words + [0] * (4 - len(words)), np.uint64)
        ).random_raw
        self._buffer: list[float] = []

    def random(self) -> float:
        """Uniform in [0, 1)."""
        if not self._buffer:
            self._buffer = ((self._raw(64) >> np.uint64(11)).astype(np.float64) * 2.0**-53).tolist()[::-1]
        return self._buffer.pop()

    def uniform(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.random()

    def normal(self, mean: float = 0.0, std: float = 1.0) -> float:
        """Gaussian, by Box and Muller."""
        radius = math.sqrt(-2.0 * math.log(1.0 - self.random()))
        return mean + std * radius * math.cos(2.0 * math.pi * self.random())

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.random() < p

    def integer(self, n: int) -> int:
        """Uniform in 0..n-1."""
        return int(self.random() * n)

    def choice(self, items: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of the items, in proportion to the weights."""
        if weights is None:
            return items[self.integer(len(items))]
        at = self.random() * math.fsum(weights)
        for item, weight in zip(items, weights, strict=True):
            at -= weight
            if at < 0:
                return item
        return items[-1]

    def noise(self, *shape: int) -> NDArray[np.float32]:
        """An array close to Gaussian with mean 0 and standard deviation 1: sums of four uniform bytes."""
        count = math.prod(shape)
        octets = self._raw((count + 1) // 2).view(np.uint8)[: 4 * count].reshape(count, 4)
        sums = octets.view(np.uint32).reshape(count)
        # the four bytes of a word added in place: pairs of bytes, then pairs of pairs
        pairs = (sums & np.uint32(0x00FF00FF)) + ((sums >> np.uint32(8)) & np.uint32(0x00FF00FF))
        total = (pairs & np.uint32(0xFFFF)) + (pairs >> np.uint32(16))
        return ((total.astype(np.float32) - 510.0) * np.float32(1 / 147.8)).reshape(shape)
