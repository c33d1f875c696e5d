# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Which images come together in a step: the same global schedule on every rank, of which each takes its share.

All samplers here are batch samplers (`DataLoader(dataset, batch_sampler=...)`), yield lists of row numbers, draw from
(seed, epoch) only, have the same length on every rank, and can go on in the middle of an epoch. The batches of a step
over all ranks, put together in rank order, are the batch that one rank of the same global size would see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

Ints = NDArray[np.int64]


def _ranks(name: str, rank: int | None, world: int | None) -> tuple[int, int]:
    """The given rank and world size, else those of torch.distributed where it is initialised, else 0 of 1."""
    if (rank is None) != (world is None):
        raise ValueError(f"{name}: expected both rank and world or neither, got rank={rank}, world={world}")
    if rank is None or world is None:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            rank, world = dist.get_rank(), dist.get_world_size()
        else:
            rank, world = 0, 1
    if not 0 <= rank < world:
        raise ValueError(f"{name}: expected rank in 0..{world - 1}, got {rank}")
    return rank, world


def shard_indices(n: int, rank: int, world: int) -> range:
    """The rows of rank `rank` when n rows are divided into contiguous parts whose sizes differ by at most one."""
    if not 0 <= rank < world:
        raise ValueError(f"shard: expected rank in 0..{world - 1}, got {rank}")
    return range(n * rank // world, n * (rank + 1) // world)


class _Schedule(Sampler[list[int]]):
    """Epochs, ranks and resuming; a subclass says what the global batches of an epoch are."""

    def __init__(self, seed: int, rank: int | None, world: int | None) -> None:
        self.seed = int(seed)
        self.rank, self.world = _ranks(type(self).__name__, rank, world)
        self.epoch = 0
        self.start = 0
        self._made: tuple[int, Ints] | None = None

    def _draw(self, epoch: int) -> Ints:
        """The global batches of an epoch, [steps, world * batch]; each rank's share is a contiguous part of a row."""
        raise NotImplementedError

    def batches(self, epoch: int | None = None) -> Ints:
        """This rank's batches of an epoch (default: the current one), [steps, batch]."""
        epoch = self.epoch if epoch is None else int(epoch)
        if self._made is None or self._made[0] != epoch:
            self._made = (epoch, self._draw(epoch))
        table = self._made[1]
        share = table.shape[1] // self.world
        return table[:, self.rank * share : (self.rank + 1) * share]

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose batches come next, from its beginning (or from where `load_state_dict` said)."""
        if int(epoch) != self.epoch:
            self.epoch, self.start = int(epoch), 0

    def __iter__(self) -> Iterator[list[int]]:
        start, self.start = self.start, 0
        for batch in self.batches()[start:]:
            yield batch.tolist()

    def __len__(self) -> int:
        """Steps that the next iteration has."""
        return len(self.batches()) - self.start

    def state_dict(self, step: int = 0) -> dict[str, Any]:
        """Where training is: the epoch, and `step`, the number of its batches already trained on.

        The caller counts the steps: a loader with workers asks for batches ahead, so the sampler cannot know.
        """
        return {"epoch": self.epoch, "step": int(step), "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration goes on behind the batches already trained on."""
        if int(state["seed"]) != self.seed:
            raise ValueError(f"{type(self).__name__}: expected the state of seed {self.seed}, got {state['seed']}")
        self.epoch, self.start = int(state["epoch"]), int(state["step"])
        if not 0 <= self.start <= len(self.batches()):
            raise ValueError(f"{type(self).__name__}: expected step in 0..{len(self.batches())}, got {self.start}")

    def _rng(self, epoch: int, what: int) -> np.random.Generator:
        key = np.array([self.seed & (2**64 - 1), what], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, epoch, 0, 0], np.uint64)))


class ShuffleSampler(_Schedule):
    """Every row once an epoch, in a new order each epoch.

    Args:
        n: Number of rows.
        batch: Rows a step and rank.
        seed: Seed of the orders.
        drop_last: Leave out the last, incomplete global batch. Otherwise it is filled with rows of the epoch's
            beginning, so that all batches have one size on all ranks.
        rank: Default: torch.distributed's, or 0.
        world: Number of ranks; default: torch.distributed's, or 1.
    """

    def __init__(
        self,
        n: int,
        batch: int,
        *,
        seed: int = 0,
        drop_last: bool = True,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__(seed, rank, world)
        self.n, self.batch, self.drop_last = int(n), int(batch), bool(drop_last)
        least = self.batch * self.world if drop_last else 1
        if batch < 1 or n < least:
            raise ValueError(f"ShuffleSampler: expected at least {least} rows for batches of {batch}, got {n}")

    def _draw(self, epoch: int) -> Ints:
        size = self.batch * self.world
        order = np.argsort(self._rng(epoch, 1).random(self.n), kind="stable")
        steps = self.n // size if self.drop_last else math.ceil(self.n / size)
        return np.resize(order, steps * size).reshape(steps, size).astype(np.int64)


class IdentitySampler(_Schedule):
    """P identities with K images each, a step and rank (Hermans et al., arXiv:1703.07737, section 2).

    An epoch: the images of each identity are shuffled and cut into groups of K (an identity with fewer than K images
    has one group, its images drawn again until it is full; a rest of fewer than K is left out this epoch). Each step
    takes one group of each of P x world identities drawn from those that have groups left; the epoch ends where fewer
    are left.

    Args:
        pids: Identity of each row.
        p: Identities a step and rank.
        k: Images of each.
        camids: Camera of each row; needed for `camera_aware`.
        camera_aware: Deal the images of an identity over its cameras in turn, so that a group of K holds as many
            cameras as it can.
        steps: A fixed number of steps an epoch instead: identities come in rounds, each round all of them once in a
            new order, each time with fresh images.
        share_identities: Allow an identity on two ranks in one step (never twice on one): each rank draws from all.
        mark_repeats: Yield `row + copy * n` for the second and later copies of a row in one epoch, so that
            `ImageDataset` can transform each copy differently. Only for datasets that know of it.
        seed: Seed of everything drawn.
        rank: Default: torch.distributed's, or 0.
        world: Number of ranks; default: torch.distributed's, or 1.
    """

    def __init__(
        self,
        pids: ArrayLike,
        p: int = 16,
        k: int = 4,
        *,
        camids: ArrayLike | None = None,
        camera_aware: bool = False,
        steps: int | None = None,
        share_identities: bool = False,
        mark_repeats: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__(seed, rank, world)
        self.p, self.k, self.steps = int(p), int(k), steps
        self.camera_aware, self.share, self.mark_repeats = camera_aware, share_identities, mark_repeats
        values = np.asarray(pids)
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise ValueError(f"IdentitySampler: expected integer pids of shape (n,), got {values.dtype} {values.shape}")
        cameras = None if camids is None else np.asarray(camids)
        if cameras is not None and cameras.shape != values.shape:
            raise ValueError(f"IdentitySampler: expected camids of shape {values.shape}, got {cameras.shape}")
        if camera_aware and cameras is None:
            raise ValueError("IdentitySampler: expected camids with camera_aware=True, got None")
        if p < 1 or k < 1 or (steps is not None and steps < 1):
            raise ValueError(f"IdentitySampler: expected p, k and steps of at least 1, got {p}, {k}, {steps}")
        self.n = len(values)
        order = np.argsort(values, kind="stable")
        order = order[values[order] >= 0]  # junk is nobody
        cuts = np.flatnonzero(np.diff(values[order])) + 1
        self.rows: list[Ints] = np.split(order.astype(np.int64), cuts) if len(order) else []
        self.cameras = None if cameras is None or not camera_aware else [cameras[rows] for rows in self.rows]
        needed = self.p if share_identities else self.p * self.world
        if len(self.rows) < needed:
            split = f"{self.p} x {self.world} ranks" if self.world > 1 and not share_identities else f"{self.p}"
            remedy = "; share_identities=True lets ranks draw the same ones" if needed > self.p else ""
            raise ValueError(f"IdentitySampler: expected at least {split} identities, got {len(self.rows)}{remedy}")

    def _deal(self, identity: int, rng: np.random.Generator) -> Ints:
        """The rows of an identity in the order in which they are used; with cameras, dealt over them in turn."""
        rows = self.rows[identity]
        shuffled = np.argsort(rng.random(len(rows)), kind="stable")
        if self.cameras is None:
            return rows[shuffled]
        cameras = self.cameras[identity][shuffled]
        by_camera = np.argsort(cameras, kind="stable")
        turn = np.empty(len(rows), np.float64)  # how many of its camera come before it
        starts = np.flatnonzero(np.r_[True, np.diff(cameras[by_camera]) != 0])
        turn[by_camera] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
        return rows[shuffled[np.argsort(turn + 0.5 * rng.random(len(rows)), kind="stable")]]

    def _groups(self, identity: int, rng: np.random.Generator) -> Ints:
        """[groups, K] rows of an identity."""
        rows = self._deal(identity, rng)
        if len(rows) < self.k:
            more = rng.random(self.k - len(rows)) * len(rows)
            rows = np.concatenate([rows, rows[more.astype(np.int64)]])
        return rows[: len(rows) // self.k * self.k].reshape(-1, self.k)

    def _draw(self, epoch: int) -> Ints:
        rng = self._rng(epoch, 2)
        batches = self._draw_rounds(rng) if self.steps is not None else self._draw_epoch(rng)
        table = np.array(batches, np.int64).reshape(len(batches), self.world * self.p * self.k)
        return _mark(table, self.n) if self.mark_repeats else table

    def _take(self, candidates: Ints, rng: np.random.Generator) -> Ints:
        """Identities of one global step out of those there are, [world * p]."""
        if self.share:
            draws = [
                candidates[np.argsort(rng.random(len(candidates)), kind="stable")[: self.p]] for _ in range(self.world)
            ]
            return np.concatenate(draws)
        return candidates[np.argsort(rng.random(len(candidates)), kind="stable")[: self.p * self.world]]

    def _draw_epoch(self, rng: np.random.Generator) -> list[Ints]:
        groups = [self._groups(i, rng) for i in range(len(self.rows))]
        left = np.array([len(g) for g in groups])
        used = np.zeros(len(groups), np.int64)
        batches: list[Ints] = []
        while True:
            candidates = np.flatnonzero(left > 0)
            if len(candidates) < (self.p if self.share else self.p * self.world):
                return batches
            step = []
            for i in self._take(candidates, rng):
                # with shared identities two ranks may want the last group: they get the same one
                step.append(groups[i][min(used[i], len(groups[i]) - 1)])
                used[i] += 1
                left[i] -= 1
            batches.append(np.concatenate(step))

    def _draw_rounds(self, rng: np.random.Generator) -> list[Ints]:
        everybody = np.arange(len(self.rows))
        stock: dict[int, list[Ints]] = {}
        queue = np.empty(0, np.int64)
        batches: list[Ints] = []
        for _ in range(self.steps or 0):
            if self.share:
                chosen = self._take(everybody, rng)
            else:
                need = self.p * self.world
                chosen, queue = queue[:need], queue[need:]
                if len(chosen) < need:  # a new round; those already in this step wait
                    fresh = everybody[np.argsort(rng.random(len(everybody)), kind="stable")]
                    late = np.isin(fresh, chosen)
                    fresh = np.concatenate([fresh[~late], fresh[late]])
                    more = need - len(chosen)
                    chosen, queue = np.concatenate([chosen, fresh[:more]]), fresh[more:]
            step = []
            for i in chosen.tolist():
                if not stock.get(i):
                    stock[i] = list(self._groups(i, rng))
                step.append(stock[i].pop())
            batches.append(np.concatenate(step))
        return batches


class PairSampler(_Schedule):
    """Every row once an epoch in a new order, each followed by a random row of its identity (perhaps the same one).

    A batch is [row, partner, row, partner, ...]; rows that come again in an epoch are marked (`row + copy * n`), for
    `ImageDataset` to transform each copy differently. The supervised pre-training of PAUL (Yang et al., CVPR 2019).

    Args:
        pids: Identity of each row.
        batch: Pairs a step and rank. The last global batch is filled with rows of the epoch's beginning.
        seed: Seed of everything drawn.
        rank: Default: torch.distributed's, or 0.
        world: Number of ranks; default: torch.distributed's, or 1.
    """

    def __init__(
        self, pids: ArrayLike, batch: int, *, seed: int = 0, rank: int | None = None, world: int | None = None
    ) -> None:
        super().__init__(seed, rank, world)
        values = np.asarray(pids)
        if values.ndim != 1 or values.dtype.kind not in "iu" or len(values) == 0 or batch < 1:
            raise ValueError(
                "PairSampler: expected integer pids of shape (n,), n >= 1, and batch >= 1, "
                f"got {values.dtype} {values.shape} and {batch}"
            )
        self.n, self.batch = len(values), int(batch)
        self._by_identity = np.argsort(values, kind="stable").astype(np.int64)
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        starts = np.cumsum(counts) - counts
        self._start, self._count = starts[inverse], counts[inverse]  # of each row's identity in `_by_identity`

    def _draw(self, epoch: int) -> Ints:
        rng = self._rng(epoch, 3)
        size = self.batch * self.world
        steps = math.ceil(self.n / size)
        rows = np.resize(np.argsort(rng.random(self.n), kind="stable"), steps * size)
        place = (rng.random(len(rows)) * self._count[rows]).astype(np.int64)
        partners = self._by_identity[self._start[rows] + np.minimum(place, self._count[rows] - 1)]
        return _mark(np.stack([rows, partners], 1).reshape(steps, 2 * size).astype(np.int64), self.n)


def _mark(table: Ints, n: int) -> Ints:
    """`row + copy * n` for the second and later copies of a row."""
    flat = table.reshape(-1)
    order = np.argsort(flat, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(flat[order]) != 0])
    copy = np.empty(len(flat), np.int64)
    copy[order] = np.arange(len(flat)) - np.repeat(starts, np.diff(np.r_[starts, len(flat)]))
    return (flat + copy * n).reshape(table.shape)
