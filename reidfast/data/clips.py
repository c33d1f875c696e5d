# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Which frames of a tracklet a network sees, and batches of sets of any sizes without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from reidfast.data.images import decode as decode_file
from reidfast.data.records import Ints, Records
from reidfast.data.samplers import _Schedule
from reidfast.data.tracklets import Tracklets

Rng = np.random.Generator


def set_frames(length: int, n: int, rng: Rng | None = None) -> Ints:
    """Frames of a tracklet, n of them, drawn without replacement; all of them once before any twice (QAN, CVPR 2017).

    Without `rng`: spread evenly over the tracklet.
    """
    _check(length, n)
    if rng is None:
        return chunk_frames(length, n, None, at="middle")
    rounds = [np.argsort(rng.random(length), kind="stable") for _ in range(-(-n // length))]
    return np.sort(np.concatenate(rounds)[:n]).astype(np.int64)


def chunk_frames(length: int, n: int, rng: Rng | None = None, *, at: str = "first") -> Ints:
    """Restricted random sampling: one frame of each of n equal chunks (DRSTA, CVPR 2018).

    Chunk k is the frames floor(k T / n) to floor((k+1) T / n); where that is empty (T < n), frame floor(k T / n).

    Args:
        length: Frames of the tracklet, T.
        n: Chunks.
        rng: Draws within each chunk; None, as at test time: the chunk's `first` or `middle` frame.
        at: Which.
    """
    _check(length, n)
    edges = np.arange(n + 1) * length // n
    low, wide = edges[:-1], np.maximum(np.diff(edges), 1)
    if rng is not None:
        return (low + (rng.random(n) * wide).astype(np.int64)).astype(np.int64)
    if at not in ("first", "middle"):
        raise ValueError(f"chunk_frames: expected at 'first' or 'middle', got {at!r}")
    return (low if at == "first" else low + (wide - 1) // 2).astype(np.int64)


def clip_frames(length: int, n: int, rng: Rng | None = None, *, stride: int = 1) -> Ints:
    """Consecutive frames, n of them (RRU + STIM, AAAI 2019).

    They are `stride` apart and begin at a drawn frame; without `rng` they lie in the middle.
    A tracklet that is too short is gone through again from its beginning.
    """
    _check(length, n)
    span = (n - 1) * stride + 1
    room = max(0, length - span)
    start = room // 2 if rng is None else int(rng.random() * (room + 1))
    return ((start + stride * np.arange(n)) % length).astype(np.int64)


def all_frames(length: int, n: int = 0, rng: Rng | None = None) -> Ints:
    """The whole tracklet; `n` > 0: at most n frames of it, spread evenly."""
    return np.arange(length) if n <= 0 or length <= n else chunk_frames(length, n)


def _check(length: int, n: int) -> None:
    if length < 1 or n < 1:
        raise ValueError(f"frames: expected a tracklet of at least 1 frame and n >= 1, got {length} and {n}")


CHOICES: dict[str, Callable[..., Ints]] = {
    "set": set_frames,
    "chunks": chunk_frames,
    "clip": clip_frames,
    "all": all_frames,
}


class SetBatch(NamedTuple):
    """Sets of any sizes, one after another.

    Attributes:
        images: All frames, [T, 3, H, W].
        offsets: Set s is images[offsets[s]:offsets[s+1]], int64 [S+1]: what `ops.set_pool` takes.
        labels: Identity or class of each set, int64 [S].
        camids: Camera of each set, int64 [S].
        tracklets: Which tracklet each is, int64 [S].
        rows: Row of the table of frames behind each image, int64 [T].
    """

    images: Tensor
    offsets: Tensor
    labels: Tensor
    camids: Tensor
    tracklets: Tensor
    rows: Tensor

    def dense(self) -> Tensor:
        """Images [S, n, 3, H, W] where all sets have the same size."""
        sizes = self.offsets.diff()
        if len(sizes) == 0 or (sizes != sizes[0]).any():
            raise ValueError(f"SetBatch: expected sets of one size for a dense batch, got {sizes.tolist()}")
        return self.images.unflatten(0, (len(sizes), int(sizes[0])))


class TrackletDataset(Dataset[tuple[Tensor, int, int, int, Ints]]):
    """`(images [n, 3, H, W], label, camid, index, rows [n])` for every tracklet of a table.

    What is drawn (frames, transforms) depends on (seed, epoch, index, copy) alone. An index may be `s + copy * S`: the
    tracklet s once more in the same epoch, with other frames (`IdentitySampler(mark_repeats=True)`).

    Args:
        tracklets: The table.
        transform: From a picture to a tensor, as for `ImageDataset`; called as `transform(image, rng)` where it has
            `random = True`.
        choose: Which frames: "set" (drawn without replacement), "chunks" (restricted random sampling), "clip"
            (consecutive), "all"; or a function (length, n, rng) -> indices.
        n: How many; "all" ignores 0.
        train: Draw; False: the choice that is the same each time.
        same: Draw a random transform once a tracklet, so that all its frames are flipped or cropped alike.
        decode: From (records, index) to a picture; default: read the file.
        labels: What to return in place of the pid, (S,).
        options: Keyword arguments of the choice (`stride=4`, `at="middle"`).
        seed: Seed of everything drawn.
    """

    def __init__(
        self,
        tracklets: Tracklets,
        transform: Callable[..., Any],
        *,
        choose: str | Callable[..., Ints] = "chunks",
        n: int = 8,
        train: bool = True,
        same: bool = True,
        decode: Callable[[Records, int], Image.Image] | None = None,
        labels: ArrayLike | None = None,
        options: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(choose, str) and choose not in CHOICES:
            raise ValueError(f"TrackletDataset: expected choose among {', '.join(CHOICES)}, got {choose!r}")
        if not len(tracklets) or tracklets.lengths.min() < 1:
            raise ValueError(
                "TrackletDataset: expected tracklets of at least one frame each, got an empty table or one"
            )
        self.tracklets, self.transform, self.decode = tracklets, transform, decode
        self.choose = CHOICES[choose] if isinstance(choose, str) else choose
        self.n, self.train, self.same, self.seed = int(n), bool(train), bool(same), int(seed)
        self.options = dict(options or {})
        self.labels = tracklets.pids if labels is None else np.asarray(labels)
        if self.labels.shape != (len(tracklets),):
            raise ValueError(f"TrackletDataset: expected labels of shape ({len(tracklets)},), got {self.labels.shape}")
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that run already see a new epoch

    def set_epoch(self, epoch: int) -> None:
        """Everything is drawn anew each epoch."""
        self._epoch.fill_(int(epoch))

    def __len__(self) -> int:
        return len(self.tracklets)

    def rng(self, index: int, what: int = 0) -> Rng:
        """The generator of `s + copy * S` in this epoch: of its frames (what = 0), of its transforms (1 + frame)."""
        copy, s = divmod(int(index), len(self))
        key = np.array([self.seed & (2**64 - 1), 0x7AC1], np.uint64)
        counter = np.array([0, s, (copy << 32) + what, int(self._epoch)], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def frames(self, index: int) -> Ints:
        """Rows of the table of frames that `index` shows in this epoch."""
        rows = self.tracklets[int(index) % len(self)].rows
        picked = self.choose(len(rows), self.n, self.rng(index) if self.train else None, **self.options)
        return rows[picked]

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, int, Ints]:
        i = int(index)
        if i < 0 or (i >= len(self) and not self.train):
            raise IndexError(f"TrackletDataset: expected an index in 0..{len(self) - 1}, got {i}")
        s, records = i % len(self), self.tracklets.frames
        rows, random = self.frames(i), getattr(self.transform, "random", False)
        images = []
        for k, row in enumerate(rows.tolist()):
            image = decode_file(records.absolute(row)) if self.decode is None else self.decode(records, row)
            if random:
                images.append(self.transform(image, self.rng(i, 1 if self.same else 1 + k)))
            else:
                images.append(self.transform(image))
        return torch.stack(images), int(self.labels[s]), int(self.tracklets.camids[s]), s, rows


def collate_sets(items: Sequence[tuple[Tensor, int, int, int, Ints]]) -> SetBatch:
    """Items of a `TrackletDataset` as one batch without padding: the `collate_fn` of a loader."""
    sizes = [len(item[0]) for item in items]
    labels, camids, index = (torch.tensor([item[k] for item in items], dtype=torch.int64) for k in (1, 2, 3))
    offsets = torch.from_numpy(np.r_[0, np.cumsum(sizes)].astype(np.int64))
    rows = torch.from_numpy(np.concatenate([item[4] for item in items]).astype(np.int64))
    return SetBatch(torch.cat([item[0] for item in items]), offsets, labels, camids, index, rows)


class TripletSetSampler(_Schedule):
    """Triplets of sets: anchor, positive, negative (QAN, Liu et al., CVPR 2017).

    Anchor identity, its tracklet, the positive's tracklet of the same identity and the negative's identity and tracklet
    are drawn uniformly; cameras first and then a tracklet of that camera. The positive may be the anchor's own
    tracklet (`other_tracklet=True`: only where the identity has no other); it is then marked as a repeat, so that
    `TrackletDataset` draws other frames.

    A step and rank is `triplets` times (anchor, positive, negative), in that order; identities without a second
    identity beside them are an error.

    Args:
        pids: Identity of each tracklet; -1 is left out.
        camids: Camera of each.
        triplets: A step and rank.
        steps: An epoch.
        other_tracklet: See above.
        seed: Seed of everything drawn.
        rank: Default: torch.distributed's, or 0.
        world: Number of ranks; default: torch.distributed's, or 1.
    """

    def __init__(
        self,
        pids: ArrayLike,
        camids: ArrayLike,
        triplets: int = 8,
        *,
        steps: int = 100,
        other_tracklet: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__(seed, rank, world)
        ids, cameras = np.asarray(pids), np.asarray(camids)
        if ids.ndim != 1 or ids.shape != cameras.shape:
            raise ValueError(
                f"TripletSetSampler: expected pids and camids of one shape (n,), got {ids.shape}, {cameras.shape}"
            )
        if triplets < 1 or steps < 1:
            raise ValueError(f"TripletSetSampler: expected triplets and steps of at least 1, got {triplets}, {steps}")
        self.n, self.triplets, self.steps, self.other = len(ids), int(triplets), int(steps), other_tracklet
        self.groups: list[list[Ints]] = []
        for pid in np.unique(ids[ids >= 0]):
            rows = np.flatnonzero(ids == pid)
            self.groups.append([rows[cameras[rows] == c] for c in np.unique(cameras[rows])])
        if len(self.groups) < 2:
            raise ValueError(f"TripletSetSampler: expected at least 2 identities, got {len(self.groups)}")

    def _pick(self, group: list[Ints], rng: Rng) -> int:
        rows = group[int(rng.random() * len(group))]
        return int(rows[int(rng.random() * len(rows))])

    def _draw(self, epoch: int) -> Ints:
        rng = self._rng(epoch, 3)
        total = self.world * self.triplets
        table = np.empty((self.steps, total, 3), np.int64)
        for step in range(self.steps):
            seen: dict[int, int] = {}
            for t in range(total):
                a = int(rng.random() * len(self.groups))
                b = (a + 1 + int(rng.random() * (len(self.groups) - 1))) % len(self.groups)
                anchor = self._pick(self.groups[a], rng)
                positive = self._pick(self.groups[a], rng)
                if self.other and positive == anchor:
                    rest = np.concatenate(self.groups[a])
                    rest = rest[rest != anchor]
                    positive = int(rest[int(rng.random() * len(rest))]) if len(rest) else anchor
                for k, row in enumerate((anchor, positive, self._pick(self.groups[b], rng))):
                    copy = seen.get(row, 0)
                    seen[row] = copy + 1
                    table[step, t, k] = row + copy * self.n
        return table.reshape(self.steps, total * 3)
