# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What evaluation asks of a backend.

The first methods work on whole features: they walk over chunks of queries and gallery and are the same for all backends
but Triton's, which packs features its own way. The others are what a backend must do for one chunk, for lists in host
memory, or for re-ranking. Lists per query are CSR in host memory. Sparse rows are (indptr int64, columns int32, values
float32). A row that has no distances (NaN, inf, too large) raises ValueError on the CPU; on CUDA nobody looks, for that
would synchronise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reidfast.evaluation._core.features import Chunk, FeaturePair
from reidfast.evaluation._core.labels import Labels
from reidfast.evaluation._core.pairs import PairBlocks, Pairs, csr_slice, pair_blocks
from reidfast.evaluation._core.thresholds import Thresholds

Sparse = tuple[Tensor, Tensor, Tensor]


class Neighbours(NamedTuple):
    """Nearest items of every item, itself first, over queries and gallery together.

    ``base`` holds base distances (Q, G) where the product left them behind, else None.
    """

    ids: Tensor  # int32 (n, k), -1 where there are fewer
    distances: Tensor  # float32 (n, k)
    largest: Tensor  # float32 (n,)
    base: Tensor | None


class SetOptions(NamedTuple):
    """How neighbour lists become weighted sets; see `RerankVariant`."""

    metric: str
    k1: int  # neighbours, the item itself included
    k1_half: int
    k2: int
    square: bool
    raw_weights: bool
    store_half: bool


class FinalOptions(NamedTuple):
    """How base and Jaccard distances become final ones."""

    lambda_: float
    square: bool
    blend_raw: bool
    store_half: bool


def encode_arguments(
    lists: Neighbours, features: tuple[Tensor, Tensor] | None, distances: tuple[Tensor, Tensor, Tensor] | None,
    options: SetOptions,
) -> tuple[Any, ...]:  # fmt: skip
    """The arguments of the op that `Backend.encode` stands for."""
    return (*lists[:3], *(features or (None, None)), *(distances or (None, None, None)), *options)


class Backend(ABC):
    """One way to evaluate; ``name`` is how `reidfast.use_backend` knows it."""

    name: str
    ambiguous = 0  # pairs that a low-precision pass left undecided, of ``candidates``
    candidates = 0

    # whole features

    def pair_distances(self, features: FeaturePair, pairs: Pairs, query_pids: Tensor) -> Tensor:
        """The distance of every pair, in host memory."""
        out = torch.zeros(len(pairs.column), dtype=features.dtype)
        if len(out) == 0:
            return out
        for q0, query in features.query_chunks():
            height, width = self.tile_shape(query)
            for g0, gallery in features.gallery_chunks():
                ranges = (q0, q0 + len(query)), (g0, g0 + len(gallery))
                blocks = pair_blocks(pairs, query_pids, *ranges, height, width)
                if len(blocks.slots):
                    chunk = Chunk(features.op, features.metric, query, gallery, None, q0, g0)
                    out[blocks.pair] = self.chunk_pair_distances(chunk, blocks).cpu()
        return out

    def count(self, features: FeaturePair, pairs: Pairs, labels: Labels, thresholds: Thresholds) -> Tensor:
        """Non-matches closer, as far, and as far at a lower column: [3, n] of this shard, for all thresholds."""
        counts = torch.zeros(3, len(thresholds.query), dtype=torch.int64)
        for q0, query in features.query_chunks():
            ptr, span = csr_slice(thresholds.ptr, q0, q0 + len(query))
            same_ptr, same = csr_slice(pairs.ptr, q0, q0 + len(query))
            lists = (ptr, thresholds.distance[span], thresholds.column[span], same_ptr)
            part = torch.zeros(3, len(lists[1]), dtype=torch.int64)
            for g0, first, gallery, rows in features.columns(pairs):
                chunk = Chunk(features.op, features.metric, query, gallery, rows, q0, g0, thresholds.first + first)
                self.chunk_counts(chunk, *lists, pairs.column[same] + thresholds.first, part)
            counts[:, span] += part
        return counts

    def nearest(
        self, features: FeaturePair, k: int, first: int, exclude_ptr: Tensor, exclude: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The k nearest rows of every query in this shard, whose rows are numbered from ``first`` on."""
        n, device = features.query.n, features.device
        values = torch.empty(n, k, dtype=features.dtype, device=device)
        columns = torch.empty(n, k, dtype=torch.int64, device=device)
        filled = torch.zeros(n, dtype=torch.int64)
        for q0, query in features.query_chunks():
            span = slice(q0, q0 + len(query))
            ptr, entries = csr_slice(exclude_ptr, q0, q0 + len(query))
            for g0, gallery in features.gallery_chunks():
                chunk = Chunk(features.op, features.metric, query, gallery, None, q0, g0, first + g0)
                self.chunk_nearest(chunk, ptr, exclude[entries], values[span], columns[span], filled[span])
        self.sort_nearest(values, columns, filled)
        return values, columns

    def histogram(self, features: FeaturePair, pairs: Pairs, done: int, prefixes: Tensor, bits: int) -> Tensor:
        """Non-matches by the ``bits`` bits that follow each prefix of ``done`` bits: int64 [prefixes, 2^bits]."""
        histogram = torch.zeros(len(prefixes), 1 << bits, dtype=torch.int64)
        for q0, query in features.query_chunks():
            ptr, entries = csr_slice(pairs.ptr, q0, q0 + len(query))
            for g0, first, gallery, rows in features.columns(pairs):
                chunk = Chunk(features.op, features.metric, query, gallery, rows, q0, g0, first)
                self.chunk_histogram(chunk, ptr, pairs.column[entries], done, prefixes, bits, histogram)
        return histogram

    def dense_rows(self, features: FeaturePair, pairs: Pairs, q0: int, query: Tensor, queries: int) -> Tensor:
        """Distances of some queries, the first being row ``q0``, to all columns of this shard.

        They have the bits that ``queries`` queries have when they are taken together.
        """
        parts = []
        for g0, _, gallery, rows in features.columns(pairs):
            chunk = Chunk(features.op, features.metric, self.full_height(query, queries), gallery, rows, q0, g0)
            parts.append(self.chunk_distances(chunk)[: len(query)])
        return torch.cat(parts, 1) if parts else torch.empty(len(query), 0, dtype=features.dtype)

    # one chunk

    @abstractmethod
    def tile_shape(self, query: Tensor) -> tuple[int, int]:
        """Queries and gallery rows that a block of pairs may hold."""

    @abstractmethod
    def full_height(self, query: Tensor, queries: int) -> Tensor:
        """The rows, padded where so few alone would be served by other tiles than ``queries`` are."""

    @abstractmethod
    def chunk_pair_distances(self, chunk: Chunk, blocks: PairBlocks) -> Tensor:
        """Distances of the pairs of ``blocks``, in the order of its slots."""

    @abstractmethod
    def chunk_counts(
        self, chunk: Chunk, ptr: Tensor, values: Tensor, columns: Tensor, same_ptr: Tensor, same: Tensor, counts: Tensor
    ) -> None:
        """Add to counts [3, n] (below, equal, equal at a lower column) what this chunk holds; ``same`` is left out."""

    @abstractmethod
    def chunk_nearest(
        self, chunk: Chunk, exclude_ptr: Tensor, exclude: Tensor, values: Tensor, columns: Tensor, filled: Tensor
    ) -> None:
        """Merge this chunk into the nearest so far: values, columns [Q, k], of which filled [Q] are in use."""

    @abstractmethod
    def sort_nearest(self, values: Tensor, columns: Tensor, filled: Tensor) -> None:
        """Sort each list by (distance, column) and fill the rest with (inf, -1)."""

    @abstractmethod
    def chunk_histogram(
        self, chunk: Chunk, same_ptr: Tensor, same: Tensor, prefix_bits: int, prefixes: Tensor, bits: int,
        histogram: Tensor,
    ) -> None:  # fmt: skip
        """Add to histogram [prefixes, 2^bits] the non-matches whose order-preserving integer begins with a prefix."""

    @abstractmethod
    def chunk_distances(self, chunk: Chunk) -> Tensor:
        """Distances [queries, columns]."""

    # lists and matrices

    @abstractmethod
    def find_pairs(
        self, query_pids: Tensor, gallery_pids: Tensor, query_camids: Tensor | None, gallery_camids: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Ptr, column, valid, query, gallery_order, group_start and group_size of `Pairs`."""

    @abstractmethod
    def sort_pairs(self, pair_ptr: Tensor, valid: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets of the valid pairs of every query, and their order: ascending values, equal ones by position."""

    @abstractmethod
    def rank_matrix(
        self, op: str, distances: Tensor, pair_ptr: Tensor, rows: Tensor, valid: Tensor, drop: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A whole evaluation from distances [Q, G] in host memory: `sort_pairs`, the sorted values, counts [3, n].

        ``drop`` lists columns that count for nobody.
        """

    @abstractmethod
    def count_matrix(
        self, op: str, distances: Tensor, ptr: Tensor, values: Tensor, columns: Tensor, same_ptr: Tensor, same: Tensor,
        drop: Tensor, counts: Tensor,
    ) -> None:  # fmt: skip
        """Add to counts [3, n] what distances [Q, G] hold for thresholds from elsewhere."""

    @abstractmethod
    def single_shot_closer(
        self, distances: Tensor, ptr: Tensor, values: Tensor, columns: Tensor, identity: Tensor, identities: int,
        own: Tensor,
    ) -> Tensor:  # fmt: skip
        """Images of every identity before each match, in this shard: [matches, identities] int32, host memory."""

    @abstractmethod
    def single_shot_chance(self, closer: Tensor, ptr: Tensor, sizes: Tensor, max_rank: int) -> Tensor:
        """Expected single-gallery-shot curve of every query, averaged over its matches: [Q, max_rank] float64."""

    # re-ranking

    @abstractmethod
    def neighbours(
        self, op: str, query: Tensor, gallery: Tensor, k: int, metric: str, square: bool, part: int, parts: int
    ) -> Neighbours:
        """Neighbours of row blocks part, part + parts, ...; the lists of all parts together hold the nearest."""

    @abstractmethod
    def neighbours_from_distances(self, q_g: Tensor, q_q: Tensor, g_g: Tensor, k: int, square: bool) -> Neighbours:
        """The same from base distances, every item described by its column; ties go to the lowest item."""

    @abstractmethod
    def settle(
        self, query: Tensor, gallery: Tensor, ids: Tensor, distances: Tensor, keep: int, metric: str, square: bool
    ) -> tuple[Tensor, Tensor]:
        """The first ``keep`` entries of lists, where entries that rounding may have swapped are sorted again."""

    @abstractmethod
    def encode(
        self, lists: Neighbours, features: tuple[Tensor, Tensor] | None,
        distances: tuple[Tensor, Tensor, Tensor] | None, options: SetOptions,
    ) -> Sparse:  # fmt: skip
        """Weights of every item over its expanded neighbourhood, after the local query expansion."""

    @abstractmethod
    def jaccard(self, weights: Sparse, rows: int, first: int, store_half: bool) -> Sparse:
        """Jaccard distances below 1 of items [0, rows) to items [first, n)."""

    @abstractmethod
    def final_(self, base: Tensor, largest: Tensor, jaccard: Sparse, options: FinalOptions) -> None:
        """Base distances (Q, G) -> final distances, in place."""

    @abstractmethod
    def final_distances(
        self, query: Tensor, gallery: Tensor, largest: Tensor, jaccard: Sparse, metric: str, options: FinalOptions
    ) -> Tensor:
        """Final distances (Q, G) from features."""
