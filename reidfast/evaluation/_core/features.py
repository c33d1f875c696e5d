# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Features of query and gallery: read, checked, and cut into the chunks that backends work on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reidfast._arrays import FLOATS, to_tensor
from reidfast._shards import Facts, Shards
from reidfast.evaluation._core.options import metric_number
from reidfast.evaluation._core.pairs import Pairs

NOT_FINITE, TOO_LARGE = 1, 2
_RERANKING = ("rerank", "rank_reranked", "jaccard_graph")


def bad_row(op: str, side: int, kind: int, row: int) -> ValueError:
    """What to raise for a row without distances: ``side`` 0 query, 1 gallery; ``kind`` NOT_FINITE or TOO_LARGE."""
    if op in _RERANKING:
        name = "" if op == "jaccard_graph" else ("query ", "gallery ")[side]
        value = "a NaN or infinite value" if kind == NOT_FINITE else "values too large for float32 distances"
        return ValueError(f"{op}: expected finite {name}features, got {value} in row {row}")
    where = f"{('query', 'gallery')[side]} row {row}"
    if kind == NOT_FINITE:
        return ValueError(f"{op}: expected finite features, got NaN or inf, first in {where}")
    return ValueError(
        f"{op}: expected features whose squared norm fits the distances' dtype, got a larger one, first in {where}; "
        "scale the features down or pass float64"
    )


@dataclass
class Features:
    """Rows of features in one or several chunks; ``starts[i]`` is the first row of chunk i, ``starts[-1]`` the end."""

    name: str
    chunks: list[Tensor]
    starts: list[int]
    from_files: bool

    @property
    def n(self) -> int:
        """Rows."""
        return self.starts[-1]

    @property
    def dim(self) -> int:
        """Features per row."""
        return int(self.chunks[0].shape[1])

    @property
    def device(self) -> torch.device:
        """Where all chunks are."""
        return self.chunks[0].device

    @property
    def wide(self) -> bool:
        """Whether any chunk is float64."""
        return any(chunk.dtype == torch.float64 for chunk in self.chunks)

    def matrix(self) -> Tensor:
        """All rows as one contiguous float32 tensor on their device; no copy where that is what they are."""
        chunks = [chunk.float() for chunk in self.chunks]
        return (chunks[0] if len(chunks) == 1 else torch.cat(chunks)).contiguous()

    def validate(self, op: str) -> None:
        """Look for NaN and inf before anything is computed; on CUDA this synchronises."""
        for start, chunk in zip(self.starts, self.chunks, strict=False):
            for i in range(0, len(chunk), 65536):
                wrong = ~torch.isfinite(chunk[i : i + 65536]).all(1)
                if bool(wrong.any()):
                    row = start + i + int(torch.nonzero(wrong)[0])
                    raise ValueError(f"{op}: expected finite features, got NaN or inf, first in {self.name} row {row}")


def _is_sharded(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and len(x) > 0 and not isinstance(x[0], (int, float, list, tuple, np.number))


def read_features(op: str, name: str, x: Any) -> Features:
    """Features (n, D) from an array, a file, or a sequence of those (shards along n)."""
    sharded = _is_sharded(x)
    parts = list(x) if sharded else [x]
    chunks = [to_tensor(op, f"{name}[{i}]" if sharded else name, part) for i, part in enumerate(parts)]
    starts = [0]
    for i, chunk in enumerate(chunks):
        label = f"{name}[{i}]" if sharded else name
        if chunk.ndim != 2:
            hint = "; pass one query as x[None]" if chunk.ndim == 1 else ""
            raise ValueError(f"{op}: expected {label} of shape (n, D), got {tuple(chunk.shape)}{hint}")
        if chunk.dtype not in FLOATS:
            raise TypeError(
                f"{op}: expected {label} of dtype float16, bfloat16, float32 or float64, "
                f"got {str(chunk.dtype).removeprefix('torch.')}; convert with .astype('float32') or .float()"
            )
        if chunk.device.type not in ("cpu", "cuda"):
            raise ValueError(f"{op}: expected {label} on the CPU or a CUDA device, got {chunk.device}")
        if chunk.shape[1] == 0:
            raise ValueError(f"{op}: expected {label} with D >= 1 features per row, got {tuple(chunk.shape)}")
        if chunk.shape[1] != chunks[0].shape[1]:
            raise ValueError(
                f"{op}: expected every shard of {name} with D={chunks[0].shape[1]}, got {tuple(chunk.shape)} in {label}"
            )
        if chunk.device != chunks[0].device:
            raise ValueError(f"{op}: expected every shard of {name} on {chunks[0].device}, got {chunk.device}")
        starts.append(starts[-1] + len(chunk))
    mapped = any(isinstance(p, (str, os.PathLike, np.memmap)) for p in parts)
    return Features(name, chunks, starts, mapped)


@dataclass(frozen=True)
class Chunk:
    """One chunk of the queries beside one of the gallery: what a backend works on at a time.

    ``rows`` lists the gallery rows that are columns (None = all); ``first_column`` counts over the whole gallery.
    """

    op: str
    metric: int
    query: Tensor
    gallery: Tensor
    rows: Tensor | None = None
    first_query: int = 0
    first_row: int = 0
    first_column: int = 0
    sides: tuple[int, int] = (0, 1)  # what the rows of query and gallery are: 0 queries, 1 gallery rows

    @property
    def dtype(self) -> torch.dtype:
        """Of the distances: float64 where either side is, else float32."""
        return distance_dtype(self.query, self.gallery)

    def bad_row(self, side: int, kind: int, row: int) -> ValueError:
        """What to raise for a row of this chunk."""
        return bad_row(self.op, self.sides[side], kind, (self.first_row if side else self.first_query) + row)


def distance_dtype(*features: Tensor) -> torch.dtype:
    """float64 where any features are, else float32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in features) else torch.float32


@dataclass
class FeaturePair:
    """Features of query and gallery that fit each other. ``wide``: distances are float64, in every shard."""

    op: str
    query: Features
    gallery: Features
    metric: int
    wide: bool = False

    @classmethod
    def read(cls, op: str, query: Any, gallery: Any, shards: Shards, metric: Any = "sqeuclidean") -> FeaturePair:
        """Both, checked. A shard of the gallery may be empty."""
        number = metric_number(op, metric)
        q, g = read_features(op, "query", query), read_features(op, "gallery", gallery)
        _check_fit(op, q, g, shards)
        return cls(op, q, g, number, q.wide or g.wide)

    def agree_on(self, facts: Facts) -> None:
        """What processes that share the gallery must pass alike."""
        facts.add(query=self.query.chunks, D=self.gallery.dim, device=self.query.device.type, metric=self.metric)

    def settle_dtype(self, shards: Shards) -> None:
        """Make distances float64 where any shard's are."""
        self.wide = bool(shards.sum(self.wide)[0])

    @property
    def device(self) -> torch.device:
        """Where distances are made."""
        return self.query.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the distances."""
        return torch.float64 if self.wide else torch.float32

    def query_chunks(self) -> Iterator[tuple[int, Tensor]]:
        """First row and rows of every chunk of the queries."""
        for start, chunk in zip(self.query.starts, self.query.chunks, strict=False):
            if len(chunk):
                widen = self.wide and self.query.chunks[0].dtype != torch.float64
                yield start, chunk.double() if widen else chunk

    def gallery_chunks(self) -> Iterator[tuple[int, Tensor]]:
        """First row and rows of every chunk of the gallery, on the queries' device."""
        for start, chunk in zip(self.gallery.starts, self.gallery.chunks, strict=False):
            if len(chunk):
                yield start, chunk.to(self.query.device)

    def columns(self, pairs: Pairs | None) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
        """Per gallery chunk: first row, first column, features, and the rows that are columns (None = all)."""
        for start, gallery in self.gallery_chunks():
            if pairs is None or pairs.rows is None:
                yield start, start, gallery, None
                continue
            begin, end = torch.searchsorted(pairs.rows, torch.tensor([start, start + len(gallery)])).tolist()
            if begin < end:
                yield start, begin, gallery, pairs.rows[begin:end] - start


def _check_fit(op: str, query: Features, gallery: Features, shards: Shards) -> None:
    if query.dim != gallery.dim:
        raise ValueError(
            f"{op}: expected gallery with D={query.dim} features per row to match query, got D={gallery.dim}"
        )
    if query.device != gallery.device and not gallery.from_files:
        raise ValueError(
            f"{op}: expected gallery on query's device {query.device}, got {gallery.device}; move one with .to(device)"
        )
    if gallery.n == 0 and shards.count == 1:
        raise ValueError(f"{op}: expected a gallery with at least one row, got an empty one, shape (0, {gallery.dim})")
