# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""P x K batches with pairs in them, for Siamese training."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reidfast.data.samplers import IdentitySampler

Ints = NDArray[np.int64]


class Pairs(NamedTuple):
    """Pairs of images of one batch, as places in it; the first `positives` show one person, the rest two.

    Attributes:
        first: Place of each pair's first image, (N,).
        second: Place of each pair's second image, (N,).
        positives: How many are of one person.
    """

    first: Ints
    second: Ints
    positives: int


class SiameseSampler(IdentitySampler):
    """P identities with K images each, and with every batch pairs of its images: half of one person, half of two.

    Positive pairs come from two cameras where the batch has such pairs of the identity drawn; no pair is drawn twice as
    long as there are others. What the pairs are depends on (seed, epoch, step, rank) and the batch alone.

    Args:
        pids: Identity of each row.
        camids: Camera of each row.
        p: Identities a step and rank.
        k: Images of each.
        positives: Positive pairs a step and rank.
        negatives: Negative ones.
        camera_aware: See `IdentitySampler`; here the default, for the positives' sake.
        options: The others of `IdentitySampler`.
    """

    def __init__(
        self,
        pids: ArrayLike,
        camids: ArrayLike,
        p: int = 8,
        k: int = 4,
        *,
        positives: int = 16,
        negatives: int = 16,
        camera_aware: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(pids, p, k, camids=camids, camera_aware=camera_aware, **options)
        if positives < 0 or negatives < 0 or (positives and k < 2) or (negatives and p < 2):
            raise ValueError(
                f"SiameseSampler: expected k >= 2 images for positive pairs and p >= 2 identities for negative ones, "
                f"got {positives} and {negatives} pairs with p={p}, k={k}"
            )
        self.positives, self.negatives = int(positives), int(negatives)
        self._pids, self._camids = np.asarray(pids), np.asarray(camids)

    def pairs(self, step: int, epoch: int | None = None) -> Pairs:
        """The pairs of this rank's batch number `step` of an epoch (default: the current one)."""
        epoch = self.epoch if epoch is None else int(epoch)
        rows = self.batches(epoch)[step] % self.n
        key = np.array([self.seed & (2**64 - 1), 3], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key, counter=np.array([0, epoch, step, self.rank], np.uint64)))
        one, two = np.triu_indices(len(rows), 1)
        same = self._pids[rows[one]] == self._pids[rows[two]]
        # same person: other cameras first, then other images, then copies of one image
        cost = (self._camids[rows[one]] == self._camids[rows[two]]) + 1 * (rows[one] == rows[two])
        positive = _choose(np.flatnonzero(same), cost[same], self.positives, rng)
        negative = _choose(np.flatnonzero(~same), np.zeros((~same).sum()), self.negatives, rng)
        chosen = np.concatenate([positive, negative])
        swap = rng.random(len(chosen)) < 0.5
        first, second = one[chosen], two[chosen]
        return Pairs(np.where(swap, second, first), np.where(swap, first, second), len(positive))


def _choose(candidates: Ints, cost: NDArray[Any], count: int, rng: np.random.Generator) -> Ints:
    """`count` candidates, the cheap ones first, equal ones in random order, and again from the start when they end."""
    order = np.lexsort((rng.random(len(candidates)), cost))
    return np.resize(candidates[order], count).astype(np.int64)
