# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Ranking on CUDA in the epilogue of the product: which rows are packed when, and what is counted against what.

The kernels are reidfast/ops/triton/ranking.py; `kernels_for` finds them. Tests put plain torch in their place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidfast.evaluation import _certified, _engine
from reidfast.evaluation._distances import Problem, tensor
from reidfast.evaluation._inputs import Labels
from reidfast.evaluation._pairs import Ints, Pairs, pair_blocks

_QUERIES = 8192  # packed at a time
_GALLERY_BYTES = 1 << 30  # packed at a time
_TILES = 2048  # of pair distances at a time: 128 MB
_EXACT = {"float32": "float32", "certified": "float32", "tf32x3": "tf32x3", "bf16": "bf16"}


def kernels_for(device: torch.device) -> Any:
    """The kernels that stream on ``device``, or None."""
    if _engine.COUNT_FEATURES.serving(device.type) != "triton":
        return None
    from reidfast.ops.triton import ranking

    return ranking


def open_stream(problem: Problem, precision: str) -> Stream | None:
    """How ``problem`` is streamed on its device; None where the engine's ops serve it."""
    kernels = None if problem.wide else kernels_for(problem.query.device)
    if kernels is not None:
        return Stream(kernels, problem, precision)
    if precision != "float32":
        why = "for float64 features" if problem.wide else f"on {problem.query.device.type}"
        if problem.query.device.type == "cuda" and not problem.wide:
            why += f" ({_engine.COUNT_FEATURES.reasons('triton', 'cuda') or 'another backend is forced'})"
        raise NotImplementedError(f"{problem.op}: precision {precision!r} is not served {why}; use precision='float32'")
    return None


@dataclasses.dataclass
class _Piece:
    """Gallery rows that are packed together: columns [first, first + n)."""

    first: int
    n: int
    features: Tensor
    rows: Tensor | None


def _pad(x: NDArray[Any], n: int, value: int) -> NDArray[Any]:
    return np.concatenate([x, np.full(n - len(x), value, x.dtype)])


class Stream:
    """One evaluation of ``problem`` at one precision."""

    def __init__(self, kernels: Any, problem: Problem, precision: str) -> None:
        self.kernels, self.problem, self.precision = kernels, problem, precision
        self.kind = _EXACT[precision]
        self.cosine = problem.metric == _engine.COSINE
        self.centre: Tensor | None = None
        self.kept: tuple[int, Any] | None = None
        self.candidates = self.ambiguous = 0

    def _queries(self) -> Iterator[tuple[int, Tensor]]:
        for q0, query in self.problem.query_chunks():
            for i in range(0, len(query), _QUERIES):
                yield q0 + i, query[i : i + _QUERIES]

    def _pieces(self, pairs: Pairs) -> Iterator[_Piece]:
        step = max(1, _GALLERY_BYTES // (4 * self.problem.query.dim) // self.kernels.TILE) * self.kernels.TILE
        for _, first, gallery, rows in self.problem.columns(pairs):
            n = len(gallery) if rows is None else len(rows)
            for i in range(0, n, step):
                some = gallery[i : i + step] if rows is None else gallery
                yield _Piece(first + i, min(step, n - i), some, None if rows is None else rows[i : i + step])

    def _pack(self, x: Tensor, rows: Tensor | None = None) -> Any:
        return self.kernels.pack(x, rows, self.cosine, self.kind)

    def _pack_piece(self, piece: _Piece) -> Any:
        """The last one packed is kept: thresholds and counts of a gallery in one piece share it."""
        if self.kept is None or self.kept[0] != piece.first:
            self.kept = None
            self.kept = (piece.first, self._pack(piece.features, piece.rows))
        return self.kept[1]

    def pair_distances(self, pairs: Pairs, query_ids: Ints) -> NDArray[np.float32]:
        """Distance of every pair, by the routine that counts."""
        out = np.zeros(len(pairs.column), np.float32)
        by_column = dataclasses.replace(pairs, kept=None)
        for piece in self._pieces(pairs):
            columns = piece.first, piece.first + piece.n
            for q0, query in self._queries():
                blocks = pair_blocks(
                    by_column, query_ids, (q0, q0 + len(query)), columns, self.kernels.TILE, np.iinfo(np.int64).max
                )
                if len(blocks.slots):
                    out[blocks.pair] = self._block_distances(self._pack(query), self._pack_piece(piece), blocks)
        return out

    def _block_distances(self, q: Any, g: Any, blocks: Any) -> NDArray[np.float32]:
        size, device = self.kernels.TILE, q.data.device
        heights, widths = np.diff(blocks.block_ptr), np.diff(blocks.column_ptr)
        across = -(-widths // size)
        # Lists of rows, every block's padded to whole tiles; what the padding says does not matter.
        q_index = np.zeros(len(heights) * size, np.int64)
        block_of_query = np.repeat(np.arange(len(heights)), heights)
        row = np.arange(len(blocks.order)) - blocks.block_ptr[block_of_query]
        q_index[block_of_query * size + row] = blocks.order
        tile_ptr = np.concatenate([[0], np.cumsum(across)])
        g_index = np.zeros(int(tile_ptr[-1]) * size, np.int64)
        block_of_row = np.repeat(np.arange(len(widths)), widths)
        column = np.arange(len(blocks.rows)) - blocks.column_ptr[block_of_row]
        g_index[tile_ptr[block_of_row] * size + column] = blocks.rows
        q_tile = np.repeat(np.arange(len(heights)), across) * size
        g_tile = np.arange(int(tile_ptr[-1])) * size
        # Where a pair's distance is: its tile, its query's row there, its gallery row's column.
        of_pair = np.repeat(np.arange(len(blocks.order)), np.diff(blocks.pair_ptr))
        tile = tile_ptr[block_of_query[of_pair]] + blocks.slots // size
        place = (tile * size + row[of_pair]) * size + blocks.slots % size
        lists = [tensor(x).to(device) for x in (q_index, g_index, q_tile, g_tile)]
        out = np.empty(len(place), np.float32)
        for begin in range(0, len(q_tile), _TILES):
            end = min(begin + _TILES, len(q_tile))
            d = self.kernels.pair_tiles(
                q, g, self.problem.metric, *lists[:2], lists[2][begin:end], lists[3][begin:end]
            ).flatten()
            here = (tile >= begin) & (tile < end)
            out[here] = d[tensor(place[here] - begin * size * size).to(device)].cpu().numpy()
        return out

    def _table(self, q0: int, query: Tensor, thresholds: Any, codes: Ints) -> Any:
        device, ptr = query.device, thresholds.ptr[q0 : q0 + len(query) + 1]
        rows = -(-len(query) // self.kernels.TILE) * self.kernels.TILE
        mine = slice(int(ptr[0]), int(ptr[-1]))
        return self.kernels.Table(
            tensor(_pad(ptr - ptr[0], rows + 1, int(ptr[-1] - ptr[0]))).to(device),
            tensor(thresholds.distance[mine]).to(device),
            tensor(thresholds.column[mine]).to(device),
            tensor(_pad(codes[q0 : q0 + len(query)], rows, -2)).to(device),
            torch.zeros(3, mine.stop - mine.start, dtype=torch.int64, device=device),
        )

    def count(self, pairs: Pairs, labels: Labels, thresholds: Any, counts: Ints) -> None:
        """Adds to counts [3, n] what this part of the gallery holds for the thresholds of all queries."""
        query_codes, gallery_codes = _codes(labels, pairs)
        tables = [self._table(q0, query, thresholds, query_codes) for q0, query in self._queries()]
        with_matches = np.diff(thresholds.ptr) > 0
        for piece in self._pieces(pairs):
            g = self._pack_piece(piece)
            codes = gallery_codes[piece.first : piece.first + piece.n]
            g_id = tensor(_pad(codes, g.data.shape[1], -3)).to(g.data.device)
            for (_, query), table in zip(self._queries(), tables, strict=True):
                if self.precision == "certified":
                    self._count_certified(query, piece, g, table, g_id, thresholds.first + piece.first)
                else:
                    q = self._pack(query)
                    self.kernels.count(q, g, self.problem.metric, table, g_id, thresholds.first + piece.first)
        self.candidates += int(with_matches.sum()) * pairs.columns - int(np.diff(pairs.ptr)[with_matches].sum())
        at = 0
        for table in tables:
            n = table.counts.shape[1]
            counts[:, at : at + n] += table.counts.cpu().numpy()
            at += n

    def _count_certified(self, query: Tensor, piece: _Piece, g: Any, table: Any, g_id: Tensor, first: int) -> None:
        kernels, metric, dim = self.kernels, self.problem.metric, self.problem.query.dim
        if self.centre is None:
            self.centre = g.data[0, : g.n, :dim].mean(0)
        low_q = kernels.pack(query, None, self.cosine, _certified.FIRST_PASS, self.centre)
        low_g = kernels.pack(piece.features, piece.rows, self.cosine, _certified.FIRST_PASS, self.centre)
        terms = _certified.error_terms(low_q.stats, low_g.stats, self.centre, dim, kernels.CHUNK, metric)
        row, column = kernels.low_count(low_q, low_g, metric, terms.q, terms.g, terms.slope, table, g_id)
        del low_q, low_g
        kernels.recheck(self._pack(query), g, metric, row, column, table, first)
        self.ambiguous += len(row)


def _codes(labels: Labels, pairs: Pairs) -> tuple[Ints, Ints]:
    """Identities of queries and columns as small numbers; -1 for a query that no gallery row shares."""
    ids, gallery = np.unique(labels.gallery if pairs.kept is None else labels.gallery[pairs.kept], return_inverse=True)
    if len(ids) == 0:
        return np.full(len(labels.query), -1, np.int64), gallery.astype(np.int64)
    place = np.minimum(np.searchsorted(ids, labels.query), len(ids) - 1)
    return np.where(ids[place] == labels.query, place, -1).astype(np.int64), gallery.astype(np.int64)
