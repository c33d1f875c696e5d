# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Features of query and gallery, bound to the engine: what ranking, search and ROC share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidfast.evaluation import _engine
from reidfast.evaluation._groups import Solo
from reidfast.evaluation._inputs import METRICS, Features, check_choice, check_pair, read_features
from reidfast.evaluation._pairs import Ints, Pairs, pair_blocks

_no_rows: Tensor | None = None


def tensor(x: NDArray[Any]) -> Tensor:
    """A contiguous host tensor over the same memory."""
    return torch.from_numpy(np.ascontiguousarray(x))


def status_error(op: str, status: Tensor, names: tuple[str, str], starts: tuple[int, int]) -> ValueError | None:
    """The error that a status tensor stands for, rows numbered within the whole input."""
    side, kind, row = status.tolist()
    if kind == 0:
        return None
    where = f"{names[side]} row {starts[side] + row}"
    if kind == _engine.NOT_FINITE:
        return ValueError(f"{op}: expected finite features, got NaN or inf, first in {where}")
    return ValueError(
        f"{op}: expected features whose squared norm fits the distances' dtype, got a larger one, first in {where}; "
        "scale the features down or pass float64"
    )


@dataclass
class Problem:
    """Features bound to a metric. The engine works on one chunk of the queries and one of the gallery at a time."""

    op: str
    query: Features
    gallery: Features
    metric: int
    wide: bool

    @classmethod
    def read(cls, op: str, query: Any, gallery: Any, metric: Any, ranks: Solo, validate: bool) -> Problem:
        check_choice(op, "metric", metric, METRICS)
        q, g = read_features(op, "query", query), read_features(op, "gallery", gallery)
        if ranks.size == 1:
            check_pair(op, q, g)
        else:
            check_pair(op, q, Features(g.name, g.chunks, [*g.starts[:-1], max(1, g.n)], g.from_files))
        wide = bool(ranks.add(np.array([q.wide or g.wide], np.int64))[0])
        problem = cls(op, q, g, METRICS.index(metric), wide)
        if validate:
            problem.validate()
        return problem

    @property
    def device(self) -> str:
        return self.query.device.type

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.wide else torch.float32

    def validate(self) -> None:
        """Looks for NaN and inf before anything is computed; on CUDA this synchronises."""
        for features in (self.query, self.gallery):
            for start, chunk in zip(features.starts, features.chunks, strict=False):
                for i in range(0, len(chunk), 65536):
                    bad = ~torch.isfinite(chunk[i : i + 65536]).all(1)
                    if bool(bad.any()):
                        row = start + i + int(torch.nonzero(bad)[0])
                        raise ValueError(
                            f"{self.op}: expected finite features, got NaN or inf, first in {features.name} row {row}"
                        )

    def query_chunks(self) -> Iterator[tuple[int, Tensor]]:
        for start, chunk in zip(self.query.starts, self.query.chunks, strict=False):
            if len(chunk):
                yield start, chunk.double() if self.wide and self.query.chunks[0].dtype != torch.float64 else chunk

    def gallery_chunks(self) -> Iterator[tuple[int, Tensor]]:
        for start, chunk in zip(self.gallery.starts, self.gallery.chunks, strict=False):
            if len(chunk):
                yield start, chunk.to(self.query.device)

    def check(self, status: Tensor, q0: int, g0: int) -> None:
        error = status_error(self.op, status, ("query", "gallery"), (q0, g0))
        if error is not None:
            raise error

    def pair_distances(self, pairs: Pairs, query_ids: Ints) -> NDArray[Any]:
        """Distance of every pair."""
        out = np.zeros(len(pairs.column), np.float64 if self.wide else np.float32)
        if len(out) == 0:
            return out
        for q0, query in self.query_chunks():
            height, width = _engine.tile_shape(len(query), self.device)
            for g0, gallery in self.gallery_chunks():
                blocks = pair_blocks(pairs, query_ids, (q0, q0 + len(query)), (g0, g0 + len(gallery)), height, width)
                if len(blocks.slots) == 0:
                    continue
                d, status = _engine.PAIR_DISTANCES.on[self.device](
                    query, gallery, self.metric, tensor(blocks.order), tensor(blocks.block_ptr),
                    tensor(blocks.column_ptr), tensor(blocks.rows), tensor(blocks.pair_ptr), tensor(blocks.slots),
                )  # fmt: skip
                self.check(status, q0, g0)
                out[blocks.pair] = d.cpu().numpy()
        return out

    def columns(self, pairs: Pairs) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
        """Per gallery chunk: first row, first column, features, and the rows that are columns (None = all)."""
        for g0, gallery in self.gallery_chunks():
            if pairs.kept is None:
                yield g0, g0, gallery, None
                continue
            begin, end = np.searchsorted(pairs.kept, (g0, g0 + len(gallery)))
            if begin < end:
                yield g0, int(begin), gallery, tensor(pairs.kept[begin:end] - g0)


def csr_slice(ptr: Ints, begin: int, end: int) -> tuple[Tensor, slice]:
    """Offsets of rows [begin, end) counted from their first entry, and where their entries are."""
    return tensor(ptr[begin : end + 1] - ptr[begin]), slice(int(ptr[begin]), int(ptr[end]))


@contextlib.contextmanager
def together(ranks: Solo) -> Iterator[None]:
    """An error of one rank becomes an error of all."""
    try:
        yield
    except Exception as error:
        ranks.first_error(error)
        raise
    else:
        ranks.first_error(None)
