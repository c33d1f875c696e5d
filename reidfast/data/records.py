# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What a re-ID data set is here: three tables of (path, pid, camid), and nothing decoded yet."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
SPLITS = ("train", "query", "gallery")


class Record(NamedTuple):
    """One image: its absolute path, its identity and its camera."""

    path: Path
    pid: int
    camid: int


def _frozen(name: str, values: ArrayLike) -> Ints:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"Records: expected {name} of shape (n,), got {array.shape}")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"Records: expected integer {name}, got {array.dtype}")
    array = array.astype(np.int64)  # always a copy, so that freezing it is nobody else's business
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Records:
    """A table of images.

    Args:
        root: Folder that `paths` are relative to.
        paths: One path an image, relative to `root`, with forward slashes.
        pids: Identity of each image, (n,), int64. -1 = junk; in Market-style galleries 0 = distractor.
        camids: Camera of each image, (n,), int64, numbered as the data set numbers them.
        extra: Further columns of length n (`frame`, `sequence`, `tracklet`, `name` ...).
    """

    root: Path
    paths: tuple[str, ...]
    pids: Ints
    camids: Ints
    extra: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "root", Path(self.root))
        set_(self, "paths", tuple(self.paths))
        set_(self, "pids", _frozen("pids", self.pids))
        set_(self, "camids", _frozen("camids", self.camids))
        n = len(self.paths)
        columns = {"pids": self.pids, "camids": self.camids}
        extra = {}
        for name, values in self.extra.items():
            columns[name] = extra[name] = np.asarray(values)
        set_(self, "extra", extra)
        for name, values in columns.items():
            if len(values) != n:
                raise ValueError(f"Records: expected {n} values in {name} to match paths, got {len(values)}")

    @staticmethod
    def empty(root: str | os.PathLike[str] = ".") -> Records:
        """A table with no rows."""
        nothing = np.empty(0, np.int64)
        return Records(Path(root), (), nothing, nothing)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        i = range(len(self))[int(index)]  # negative indices, and IndexError past the end
        return Record(self.root / self.paths[i], int(self.pids[i]), int(self.camids[i]))

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def absolute(self, index: int) -> Path:
        """Where image `index` lies."""
        return self.root / self.paths[index]

    def select(self, index: ArrayLike | slice) -> Records:
        """The rows named by integer indices, a boolean mask or a slice, in that order."""
        rows = np.arange(len(self))
        if isinstance(index, slice):
            rows = rows[index]
        else:
            wanted = np.asarray(index)
            if wanted.dtype == bool and wanted.shape != rows.shape:
                raise ValueError(f"select: expected a mask of shape ({len(self)},), got {wanted.shape}")
            rows = rows[wanted if wanted.size or wanted.dtype == bool else wanted.astype(np.int64)]
        return Records(
            self.root,
            tuple(self.paths[i] for i in rows),
            self.pids[rows],
            self.camids[rows],
            {name: values[rows] for name, values in self.extra.items()},
        )

    def labels(self) -> tuple[Ints, Ints]:
        """`(labels, pids)`: the class 0..C-1 of each image and, per class, its identity; what a classifier needs."""
        pids, labels = np.unique(self.pids, return_inverse=True)
        return labels.reshape(-1).astype(np.int64), pids

    def with_extra(self, **columns: ArrayLike) -> Records:
        """The same rows with columns added or replaced."""
        return replace(self, extra={**self.extra, **{name: np.asarray(c) for name, c in columns.items()}})


def concatenate(tables: Sequence[Records], *, offset: bool = True) -> Records:
    """Several tables as one.

    Args:
        tables: The tables, in order.
        offset: Keep the sources apart: identities and cameras of later tables are shifted past those before
            (junk, -1, stays -1). False leaves every number as it is.

    Returns:
        One table whose root is the deepest folder common to all, with the columns of `extra` that all share, and the
        column `source` (index of the table a row came from).
    """
    tables = list(tables)
    if not tables:
        raise ValueError("concatenate: expected at least one table, got none")
    roots = [Path(t.root).absolute() for t in tables]
    try:
        root = Path(os.path.commonpath([str(r) for r in roots]))
    except ValueError:
        raise ValueError(f"concatenate: expected roots on one drive, got {', '.join(map(str, roots))}") from None
    paths: list[str] = []
    pids: list[Ints] = []
    camids: list[Ints] = []
    next_pid = next_camid = 0
    for table, at in zip(tables, roots, strict=True):
        prefix = at.relative_to(root).as_posix()
        paths += table.paths if prefix == "." else [f"{prefix}/{p}" for p in table.paths]
        pids.append(np.where(table.pids < 0, table.pids, table.pids + next_pid))
        camids.append(table.camids + next_camid)
        if offset and len(table):
            next_pid = max(next_pid, int(pids[-1].max()) + 1)
            next_camid = max(next_camid, int(camids[-1].max()) + 1)
    shared = set.intersection(*(set(t.extra) for t in tables)) - {"source"}
    extra: dict[str, NDArray[Any]] = {k: np.concatenate([t.extra[k] for t in tables]) for k in sorted(shared)}
    extra["source"] = np.repeat(np.arange(len(tables)), [len(t) for t in tables])
    return Records(root, tuple(paths), np.concatenate(pids), np.concatenate(camids), extra)


@dataclass(frozen=True, eq=False)
class ReidData:
    """A data set: what to train on, what to search for, and where to search.

    Args:
        name: How it was asked for.
        train: The training images; empty where a copy on disk has none.
        query: The images searched for; likewise.
        gallery: The images searched through; likewise.
        distractor: The identity that stands for "nobody in particular" in the gallery (Market-1501: 0), or None.
        notes: What is missing or differs from the published counts, one sentence each. Empty: all as published.
        info: Further facts a reader wants to pass on (parameters of synthetic data, names of classes ...).
    """

    name: str
    train: Records
    query: Records
    gallery: Records
    distractor: int | None = None
    notes: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def splits(self) -> MappingProxyType[str, Records]:
        """The tables by name, in the order train, query, gallery."""
        return MappingProxyType({"train": self.train, "query": self.query, "gallery": self.gallery})

    def summary(self) -> dict[str, dict[str, int]]:
        """Images, ids and cameras of each split, and, in the gallery, how many images are junk and distractors.

        `images` counts every row; `ids` leaves out junk (-1) and the distractor identity. Where the tables have the
        column `tracklet`, the tracklets are counted too.
        """
        table = {}
        for name, records in self.splits.items():
            junk = records.pids == -1
            nobody = records.pids == self.distractor if self.distractor is not None else np.zeros_like(junk)
            table[name] = {
                "images": len(records),
                "ids": len(np.unique(records.pids[~junk & ~nobody])),
                "cameras": len(np.unique(records.camids)),
                "junk": int(junk.sum()),
                "distractors": int(nobody.sum()),
            }
            if "tracklet" in records.extra:
                number = records.extra["tracklet"]
                for key, rows in (
                    ("tracklets", junk | True),
                    ("junk_tracklets", junk),
                    ("distractor_tracklets", nobody),
                ):
                    table[name][key] = len(np.unique(number[rows]))
        return table

    def describe(self) -> str:
        """`summary()` as a small text table, with the notes under it."""
        lines = [f"{self.name}", f"{'':10}{'images':>9}{'ids':>7}{'cameras':>9}"]
        for name, row in self.summary().items():
            line = f"{name:10}{row['images']:9,}{row['ids']:7,}{row['cameras']:9}"
            if "tracklets" in row:
                line += f"  {row['tracklets']:,} tracklets"
            apart = [f"{row[k]:,} {k}" for k in ("junk", "distractors") if row[k]]
            lines.append(line + (f"  ({', '.join(apart)})" if apart else ""))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def split_identities(
    records: Records, *, test: float = 0.5, queries: int = 1, seed: int = 0, name: str = "split"
) -> ReidData:
    """Divides one table into train, query and gallery by Market-1501's rule.

    A seeded draw takes the share `test` of the identities for testing; of each of them `queries` images per camera
    become queries (only where another camera saw the person too), the rest is the gallery. Junk goes to the gallery.
    """
    if not 0 <= test <= 1:
        raise ValueError(f"split_identities: expected test in [0, 1], got {test}")
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x5911]))
    pids = np.unique(records.pids[records.pids >= 0])
    drawn = pids[np.argsort(rng.random(len(pids)), kind="stable")[: round(test * len(pids))]]
    is_test = np.isin(records.pids, drawn) | (records.pids < 0)
    is_query = np.zeros(len(records), bool)
    for pid in np.sort(drawn):
        rows = np.flatnonzero(records.pids == pid)
        cameras = np.unique(records.camids[rows])
        if len(cameras) < 2:
            continue
        for camera in cameras:
            seen = rows[records.camids[rows] == camera]
            pick = np.argsort(rng.random(len(seen)), kind="stable")[: min(queries, len(seen))]
            is_query[seen[pick]] = True
    parts = (records.select(~is_test), records.select(is_query), records.select(is_test & ~is_query))
    return ReidData(name, *parts)
