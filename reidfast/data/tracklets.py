# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Frames that belong together: tracklets of videos, or any other sets of images of one person by one camera."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reidfast.data.records import Ints, Records


class Tracklet(NamedTuple):
    """One tracklet: its identity, its camera, and its rows in the table of frames, in time order."""

    pid: int
    camid: int
    rows: Ints


@dataclass(frozen=True, eq=False)
class Tracklets:
    """A table of tracklets over a table of frames.

    Args:
        frames: The images. Several `Tracklets` may stand over one table (query and gallery of MARS).
        rows: Rows of `frames`, tracklet by tracklet, each in time order, (T,), int64.
        offsets: Tracklet s is rows[offsets[s]:offsets[s+1]], (S+1,), int64; what `ops.set_pool` takes.
        pids: Identity of each tracklet, (S,), int64; -1 = junk, and in some galleries 0 = distractor.
        camids: Camera of each tracklet, (S,), int64.
        extra: Further columns of length S.
    """

    frames: Records
    rows: Ints
    offsets: Ints
    pids: Ints
    camids: Ints
    extra: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        for name in ("rows", "offsets", "pids", "camids"):
            array = np.array(getattr(self, name))
            if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
                raise ValueError(f"Tracklets: expected integer {name} of shape (n,), got {array.dtype} {array.shape}")
            array = array.astype(np.int64)
            array.setflags(write=False)
            set_(self, name, array)
        set_(self, "extra", {name: np.asarray(values) for name, values in self.extra.items()})
        rows, offsets, n = self.rows, self.offsets, len(self.pids)
        if len(offsets) != n + 1 or offsets[0] != 0 or offsets[-1] != len(rows) or (np.diff(offsets) < 0).any():
            raise ValueError(
                f"Tracklets: expected {n + 1} offsets that rise from 0 to {len(rows)}, got {len(offsets)} "
                f"from {offsets[0] if len(offsets) else None} to {offsets[-1] if len(offsets) else None}"
            )
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.frames):
            raise ValueError(f"Tracklets: expected rows in 0..{len(self.frames) - 1}, got {rows.min()}..{rows.max()}")
        for name, values in {"camids": self.camids, **self.extra}.items():
            if len(values) != n:
                raise ValueError(f"Tracklets: expected {n} values in {name} to match pids, got {len(values)}")

    @staticmethod
    def of(
        frames: Records, by: str | Sequence[str] | None = None, *, order: str | None = None, least: int = 1
    ) -> Tracklets:
        """The tracklets of a table: rows that agree in some columns.

        Args:
            frames: The table.
            by: Columns (`pid`, `camid` or any of `frames.extra`) that tell one set from another; default: `tracklet`.
                `("pid", "camid")` makes one set of each person and camera.
            order: Column by which the rows of a set are sorted; default: `frame` where the table has it, else the
                table's order.
            least: Leave out sets of fewer rows.

        Raises:
            ValueError: There is no such column; or a set with two identities or cameras.
        """
        names = ["tracklet"] if by is None else [by] if isinstance(by, str) else list(by)
        columns = {"pid": frames.pids, "camid": frames.camids, **frames.extra}
        for name in (*names, *([order] if order else [])):
            if name not in columns:
                raise ValueError(f"Tracklets: expected a column among {', '.join(columns)}, got {name!r}")
        n = len(frames)
        key = np.zeros(n, np.int64)
        for name in names:
            values, code = np.unique(columns[name], return_inverse=True)
            key = key * max(1, len(values)) + code.reshape(-1)
            key = np.unique(key, return_inverse=True)[1].reshape(-1).astype(np.int64)  # stays below n
        time = columns.get(order or "frame", np.arange(n))
        rows = np.lexsort((np.arange(n), time, key)).astype(np.int64)
        starts = np.flatnonzero(np.r_[True, np.diff(key[rows]) != 0]) if n else np.empty(0, np.int64)
        lengths = np.diff(np.r_[starts, n]) if n else np.empty(0, np.int64)
        first = rows[starts]
        for name, column in (("identities", frames.pids), ("cameras", frames.camids)):
            mixed = np.flatnonzero(column[rows] != np.repeat(column[first], lengths))
            if len(mixed):
                row = int(rows[mixed[0]])
                raise ValueError(
                    f"Tracklets: expected one of the {name} in each set, got two in that of {frames.paths[row]}"
                )
        extra = {k: v[first] for k, v in columns.items() if k in names and k not in ("pid", "camid")}
        offsets = np.r_[0, np.cumsum(lengths)].astype(np.int64)
        table = Tracklets(frames, rows, offsets, frames.pids[first], frames.camids[first], extra)
        return table if least <= 1 else table.select(table.lengths >= least)

    @property
    def lengths(self) -> Ints:
        """Frames in each tracklet, (S,)."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.pids)

    def __getitem__(self, index: int) -> Tracklet:
        i = range(len(self))[int(index)]
        return Tracklet(int(self.pids[i]), int(self.camids[i]), self.rows[self.offsets[i] : self.offsets[i + 1]])

    def __iter__(self) -> Iterator[Tracklet]:
        return (self[i] for i in range(len(self)))

    def select(self, index: ArrayLike | slice) -> Tracklets:
        """The tracklets named by integer indices, a boolean mask or a slice, in that order, over the same frames."""
        chosen = np.arange(len(self))
        if isinstance(index, slice):
            chosen = chosen[index]
        else:
            wanted = np.asarray(index)
            if wanted.dtype == bool and wanted.shape != chosen.shape:
                raise ValueError(f"select: expected a mask of shape ({len(self)},), got {wanted.shape}")
            chosen = chosen[wanted if wanted.size or wanted.dtype == bool else wanted.astype(np.int64)]
        return self._with_rows(chosen, [self[int(i)].rows for i in chosen])

    def replace_rows(self, rows: Sequence[ArrayLike]) -> Tracklets:
        """The same tracklets with other rows of the same table: some of their frames, say."""
        if len(rows) != len(self):
            raise ValueError(f"replace_rows: expected rows of {len(self)} tracklets, got {len(rows)}")
        return self._with_rows(np.arange(len(self)), [np.asarray(r, np.int64) for r in rows])

    def _with_rows(self, chosen: NDArray[Any], rows: Sequence[Ints]) -> Tracklets:
        offsets = np.r_[0, np.cumsum([len(r) for r in rows], dtype=np.int64)]
        flat = np.concatenate(rows) if len(rows) else np.empty(0, np.int64)
        extra = {name: values[chosen] for name, values in self.extra.items()}
        return Tracklets(self.frames, flat, offsets, self.pids[chosen], self.camids[chosen], extra)

    def records(self) -> Records:
        """All frames of all tracklets as a table of images, in order."""
        return self.frames.select(self.rows)

    def labels(self) -> tuple[Ints, Ints]:
        """`(labels, pids)`: the class 0..C-1 of each tracklet and, per class, its identity."""
        pids, labels = np.unique(self.pids, return_inverse=True)
        return labels.reshape(-1).astype(np.int64), pids
