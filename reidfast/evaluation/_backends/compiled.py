# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Evaluation through the compiled library: the only module that names its ops.

Matrices and features are on the CPU (csrc/torch/evaluation, csrc/torch/rerank); the sets of re-ranking, and
the counting of distances that something else made, also run on CUDA where the library was built with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reidfast.evaluation._backends.base import Backend, FinalOptions, Neighbours, SetOptions, Sparse, encode_arguments
from reidfast.evaluation._core.features import Chunk, bad_row
from reidfast.evaluation._core.pairs import PairBlocks
from reidfast.ops import _backends, _library

BLOCK_QUERIES, BLOCK_GALLERY = 4096, 1024  # packed at a time; bounds memory, changes no result
_FEW = 32  # as many queries or fewer are served by tiles of this height, whose last bits may differ
_TILE = 128, 576  # of more queries; the width is a multiple of what BLAS kernels have


def loaded() -> bool:
    """Whether the compiled library is there."""
    return _library.loaded


def why_not_loaded() -> str:
    """Why it is not."""
    return _library.native_reason or "the compiled library is not there"


def forced() -> str | None:
    """The backend that `reidfast.use_backend` or REIDFAST_BACKEND asks for."""
    return _backends.forced()


@functools.cache
def _op(name: str) -> Callable[..., Any]:
    """An internal op. Where Ctrl-C stopped it, what the signal's handler raised is raised."""
    operator: Callable[..., Any] = getattr(torch.ops.reidfast_eval, name).default

    def run(*arguments: Any) -> Any:
        try:
            return operator(*arguments)
        except RuntimeError as error:
            _library.raise_interrupt(error)
            raise

    return run


@dataclass(frozen=True)
class DeviceKernels:
    """The compiled kernels for distances and lists that are on a CUDA device, each with the signature of its op."""

    count_below: Callable[..., Any]
    settle: Callable[..., Any]
    encode: Callable[..., Any]
    jaccard: Callable[..., Any]
    final_: Callable[..., Any]


def device_kernels(device: torch.device) -> DeviceKernels | None:
    """Those of ``device``, or None where they were not built or plain torch is asked for."""
    if device.type != "cuda" or not _library.has_cuda or forced() == "reference":
        return None
    names = ("count_below", "rerank_settle", "rerank_encode", "rerank_jaccard", "rerank_final_")
    return DeviceKernels(*map(_op, names))


def tile_shape(queries: int) -> tuple[int, int]:
    """Query rows and gallery rows of a tile on the CPU; every product has this shape, padded with zeros."""
    return (_FEW, _TILE[1]) if queries <= _FEW else _TILE


def full_height(query: Tensor, queries: int) -> Tensor:
    """The rows of ``query``, repeated until tiles have the height that they have for ``queries`` queries."""
    if queries <= _FEW or len(query) > _FEW:
        return query
    return torch.cat([query, query[:1].expand(_FEW + 1 - len(query), -1)])


def _check(status: Tensor, error: Callable[[int, int, int], ValueError]) -> None:
    """Raise where ``status``, int64 [3] (side, kind, row), says that a row has no distances; kind 0 is fine."""
    side, kind, row = status.tolist()
    if kind:
        raise error(side, kind, row)


def nan_distance(op: str, row: int) -> ValueError:
    """What to raise for NaN among distances."""
    return ValueError(f"{op}: expected distances without NaN, got NaN, first in query row {row}")


class Compiled(Backend):
    """The compiled ops."""

    name = "native"

    def tile_shape(self, query: Tensor) -> tuple[int, int]:
        return tile_shape(len(query))

    def full_height(self, query: Tensor, queries: int) -> Tensor:
        return full_height(query, queries)

    def chunk_pair_distances(self, chunk: Chunk, blocks: PairBlocks) -> Tensor:
        distances, status = _op("pair_distances")(
            chunk.query, chunk.gallery, chunk.metric, blocks.order, blocks.block_ptr, blocks.column_ptr, blocks.rows,
            blocks.pair_ptr, blocks.slots,
        )  # fmt: skip
        _check(status, chunk.bad_row)
        return distances

    def chunk_counts(
        self, chunk: Chunk, ptr: Tensor, values: Tensor, columns: Tensor, same_ptr: Tensor, same: Tensor, counts: Tensor
    ) -> None:
        status = _op("count_features")(
            chunk.query, chunk.gallery, chunk.rows, chunk.metric, chunk.first_column, ptr, values, columns, same_ptr,
            same, BLOCK_QUERIES, BLOCK_GALLERY, counts,
        )  # fmt: skip
        _check(status, chunk.bad_row)

    def chunk_nearest(
        self, chunk: Chunk, exclude_ptr: Tensor, exclude: Tensor, values: Tensor, columns: Tensor, filled: Tensor
    ) -> None:
        status = _op("nearest_features")(
            chunk.query, chunk.gallery, chunk.rows, chunk.metric, chunk.first_column, exclude_ptr, exclude,
            BLOCK_QUERIES, BLOCK_GALLERY, values, columns, filled,
        )  # fmt: skip
        _check(status, chunk.bad_row)

    def sort_nearest(self, values: Tensor, columns: Tensor, filled: Tensor) -> None:
        _op("sort_nearest")(values, columns, filled)

    def chunk_histogram(
        self, chunk: Chunk, same_ptr: Tensor, same: Tensor, prefix_bits: int, prefixes: Tensor, bits: int,
        histogram: Tensor,
    ) -> None:  # fmt: skip
        status = _op("histogram_features")(
            chunk.query, chunk.gallery, chunk.rows, chunk.metric, chunk.first_column, same_ptr, same, prefix_bits,
            prefixes, bits, histogram,
        )  # fmt: skip
        _check(status, chunk.bad_row)

    def chunk_distances(self, chunk: Chunk) -> Tensor:
        distances, status = _op("dense_distances")(chunk.query, chunk.gallery, chunk.rows, chunk.metric)
        _check(status, chunk.bad_row)
        return distances

    def find_pairs(
        self, query_pids: Tensor, gallery_pids: Tensor, query_camids: Tensor | None, gallery_camids: Tensor | None
    ) -> tuple[Tensor, ...]:
        return tuple(_op("find_pairs")(query_pids, gallery_pids, query_camids, gallery_camids))

    def sort_pairs(self, pair_ptr: Tensor, valid: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        ptr, order = _op("sort_pairs")(pair_ptr, valid, values)
        return ptr, order

    def rank_matrix(
        self, op: str, distances: Tensor, pair_ptr: Tensor, rows: Tensor, valid: Tensor, drop: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ptr, order, values, counts, wrong = _op("rank_matrix")(distances, pair_ptr, rows, valid, drop)
        if wrong >= 0:
            raise nan_distance(op, wrong)
        return ptr, order, values, counts

    def count_matrix(
        self, op: str, distances: Tensor, ptr: Tensor, values: Tensor, columns: Tensor, same_ptr: Tensor, same: Tensor,
        drop: Tensor, counts: Tensor,
    ) -> None:  # fmt: skip
        wrong = _op("count_distances")(distances, ptr, values, columns, same_ptr, same, drop, counts)
        if wrong >= 0:
            raise nan_distance(op, wrong)

    def single_shot_closer(
        self, distances: Tensor, ptr: Tensor, values: Tensor, columns: Tensor, identity: Tensor, identities: int,
        own: Tensor,
    ) -> Tensor:  # fmt: skip
        closer: Tensor = _op("single_shot_closer")(distances, ptr, values, columns, identity, identities, own)
        return closer

    def single_shot_chance(self, closer: Tensor, ptr: Tensor, sizes: Tensor, max_rank: int) -> Tensor:
        curves: Tensor = _op("single_shot_chance")(closer, ptr, sizes, max_rank)
        return curves

    def neighbours(
        self, op: str, query: Tensor, gallery: Tensor, k: int, metric: str, square: bool, part: int, parts: int
    ) -> Neighbours:
        arguments = (query, gallery, k, metric, square, part, parts)
        ids, distances, largest, base, status = _op("rerank_neighbours")(*arguments)
        _check(status, functools.partial(bad_row, op))
        return Neighbours(ids, distances, largest, base if len(base) else None)

    def neighbours_from_distances(self, q_g: Tensor, q_q: Tensor, g_g: Tensor, k: int, square: bool) -> Neighbours:
        ids, distances, largest = _op("rerank_neighbours_from_distances")(q_g, q_q, g_g, k, square)
        return Neighbours(ids, distances, largest, None)

    def settle(
        self, query: Tensor, gallery: Tensor, ids: Tensor, distances: Tensor, keep: int, metric: str, square: bool
    ) -> tuple[Tensor, Tensor]:
        ids, distances = _op("rerank_settle")(query, gallery, ids, distances, keep, metric, square)
        return ids, distances

    def encode(
        self, lists: Neighbours, features: tuple[Tensor, Tensor] | None,
        distances: tuple[Tensor, Tensor, Tensor] | None, options: SetOptions,
    ) -> Sparse:  # fmt: skip
        indptr, columns, values = _op("rerank_encode")(*encode_arguments(lists, features, distances, options))
        return indptr, columns, values

    def jaccard(self, weights: Sparse, rows: int, first: int, store_half: bool) -> Sparse:
        indptr, columns, values = _op("rerank_jaccard")(*weights, rows, first, store_half)
        return indptr, columns, values

    def final_(self, base: Tensor, largest: Tensor, jaccard: Sparse, options: FinalOptions) -> None:
        _op("rerank_final_")(base, largest, *jaccard, *options)

    def final_distances(
        self, query: Tensor, gallery: Tensor, largest: Tensor, jaccard: Sparse, metric: str, options: FinalOptions
    ) -> Tensor:
        distances, status = _op("rerank_distances")(query, gallery, largest, *jaccard, metric, *options)
        _check(status, functools.partial(bad_row, "rerank"))
        return distances
