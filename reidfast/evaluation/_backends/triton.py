# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Evaluation on CUDA in the epilogue of the product: which rows are packed when, and what is counted against what.

The kernels are reidfast/ops/triton/ranking.py. Tests put the same in plain torch in their place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reidfast.evaluation._backends import certified
from reidfast.evaluation._backends.base import Neighbours
from reidfast.evaluation._backends.compiled import DeviceKernels
from reidfast.evaluation._backends.torch_reranking import METRIC_NUMBERS
from reidfast.evaluation._backends.torch_tiles import Packed, TorchTiles
from reidfast.evaluation._core.features import Chunk, FeaturePair
from reidfast.evaluation._core.labels import Labels
from reidfast.evaluation._core.options import COSINE
from reidfast.evaluation._core.pairs import PairBlocks, Pairs, offsets, pair_blocks
from reidfast.evaluation._core.thresholds import Thresholds

_QUERIES = 8192  # packed at a time
_GALLERY_BYTES = 1 << 30  # packed at a time
_TILES = 2048  # of pair distances at a time: 128 MB
_KINDS = {"float32": "float32", "certified": "float32", "tf32x3": "tf32x3", "bf16": "bf16"}


@dataclasses.dataclass
class _KernelPacked(Packed):
    """Rows as plain torch and as the kernels take them."""

    rows: Any = None


@dataclasses.dataclass
class _Piece:
    """Gallery rows that are packed together: columns [first, first + n)."""

    first: int
    n: int
    features: Tensor
    rows: Tensor | None


def _pad(x: Tensor, n: int, value: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, n - len(x)), value=value)


class Triton(TorchTiles):
    """Float32 features on the Triton kernels, for one evaluation at one precision."""

    name = "triton"

    def __init__(self, triton: Any, kernels: DeviceKernels | None = None, precision: str = "float32") -> None:
        super().__init__(kernels)
        self.triton, self.precision = triton, precision
        self.centre: Tensor | None = None
        self.last: tuple[int, Any] | None = None  # the piece packed last, and its first column
        self.candidates = self.ambiguous = 0

    # ranking

    def _queries(self, features: FeaturePair) -> Iterator[tuple[int, Tensor]]:
        for q0, query in features.query_chunks():
            for i in range(0, len(query), _QUERIES):
                yield q0 + i, query[i : i + _QUERIES]

    def _pieces(self, features: FeaturePair, pairs: Pairs) -> Iterator[_Piece]:
        step = max(1, _GALLERY_BYTES // (4 * features.query.dim) // self.triton.TILE) * self.triton.TILE
        for _, first, gallery, rows in features.columns(pairs):
            n = len(gallery) if rows is None else len(rows)
            for i in range(0, n, step):
                part = gallery[i : i + step] if rows is None else gallery
                yield _Piece(first + i, min(step, n - i), part, None if rows is None else rows[i : i + step])

    def _pack_rows(self, x: Tensor, rows: Tensor | None, metric: int) -> Any:
        return self.triton.pack(x, rows, metric == COSINE, _KINDS[self.precision])

    def _pack_piece(self, piece: _Piece, metric: int) -> Any:
        """The last one packed stays: thresholds and counts of a gallery in one piece share it."""
        if self.last is None or self.last[0] != piece.first:
            self.last = None
            self.last = (piece.first, self._pack_rows(piece.features, piece.rows, metric))
        return self.last[1]

    def pair_distances(self, features: FeaturePair, pairs: Pairs, query_pids: Tensor) -> Tensor:
        """Distance of every pair, by the routine that counts."""
        out = torch.zeros(len(pairs.column))
        by_column = dataclasses.replace(pairs, rows=None)
        for piece in self._pieces(features, pairs):
            columns = piece.first, piece.first + piece.n
            for q0, query in self._queries(features):
                blocks = pair_blocks(
                    by_column, query_pids, (q0, q0 + len(query)), columns, self.triton.TILE, np.iinfo(np.int64).max
                )
                if len(blocks.slots):
                    q, g = self._pack_rows(query, None, features.metric), self._pack_piece(piece, features.metric)
                    out[blocks.pair] = self._block_distances(q, g, features.metric, blocks)
        return out

    def _block_distances(self, q: Any, g: Any, metric: int, blocks: PairBlocks) -> Tensor:
        size, device = self.triton.TILE, q.data.device
        heights, widths = blocks.block_ptr.diff(), blocks.column_ptr.diff()
        across = (widths + size - 1) // size
        # Lists of rows, every block's padded to whole tiles; what the padding says does not matter.
        q_index = torch.zeros(len(heights) * size, dtype=torch.int64)
        block_of_query = torch.repeat_interleave(torch.arange(len(heights)), heights)
        row = torch.arange(len(blocks.order)) - blocks.block_ptr[block_of_query]
        q_index[block_of_query * size + row] = blocks.order
        tile_ptr = offsets(across)
        g_index = torch.zeros(int(tile_ptr[-1]) * size, dtype=torch.int64)
        block_of_row = torch.repeat_interleave(torch.arange(len(widths)), widths)
        column = torch.arange(len(blocks.rows)) - blocks.column_ptr[block_of_row]
        g_index[tile_ptr[block_of_row] * size + column] = blocks.rows
        q_tile = torch.repeat_interleave(torch.arange(len(heights)), across) * size
        g_tile = torch.arange(int(tile_ptr[-1])) * size
        # Where a pair's distance is: its tile, its query's row there, its gallery row's column.
        of_pair = torch.repeat_interleave(torch.arange(len(blocks.order)), blocks.pair_ptr.diff())
        tile = tile_ptr[block_of_query[of_pair]] + blocks.slots // size
        place = (tile * size + row[of_pair]) * size + blocks.slots % size
        lists = [x.to(device) for x in (q_index, g_index, q_tile, g_tile)]
        out = torch.empty(len(place))
        for begin in range(0, len(q_tile), _TILES):
            end = min(begin + _TILES, len(q_tile))
            d = self.triton.pair_tiles(q, g, metric, *lists[:2], lists[2][begin:end], lists[3][begin:end]).flatten()
            inside = (tile >= begin) & (tile < end)
            out[inside] = d[(place[inside] - begin * size * size).to(device)].cpu()
        return out

    def _table(self, q0: int, query: Tensor, thresholds: Thresholds, codes: Tensor) -> Any:
        device, ptr = query.device, thresholds.ptr[q0 : q0 + len(query) + 1]
        rows = -(-len(query) // self.triton.TILE) * self.triton.TILE
        span = slice(int(ptr[0]), int(ptr[-1]))
        return self.triton.Table(
            _pad(ptr - ptr[0], rows + 1, int(ptr[-1] - ptr[0])).to(device),
            thresholds.distance[span].to(device),
            thresholds.column[span].to(device),
            _pad(codes[q0 : q0 + len(query)], rows, -2).to(device),
            torch.zeros(3, span.stop - span.start, dtype=torch.int64, device=device),
        )

    def count(self, features: FeaturePair, pairs: Pairs, labels: Labels, thresholds: Thresholds) -> Tensor:
        """As in `Backend`, a piece of the gallery at a time."""
        query_codes, gallery_codes = _codes(labels, pairs)
        tables = [self._table(q0, query, thresholds, query_codes) for q0, query in self._queries(features)]
        with_matches = thresholds.ptr.diff() > 0
        for piece in self._pieces(features, pairs):
            g = self._pack_piece(piece, features.metric)
            codes = gallery_codes[piece.first : piece.first + piece.n]
            g_id = _pad(codes, g.data.shape[1], -3).to(g.data.device)
            first = thresholds.first + piece.first
            for (_, query), table in zip(self._queries(features), tables, strict=True):
                if self.precision == "certified":
                    self._count_certified(features, query, piece, g, table, g_id, first)
                else:
                    q = self._pack_rows(query, None, features.metric)
                    self.triton.count(q, g, features.metric, table, g_id, first)
        self.candidates += int(with_matches.sum()) * pairs.columns - int(pairs.ptr.diff()[with_matches].sum())
        return torch.cat([torch.zeros(3, 0, dtype=torch.int64), *(table.counts.cpu() for table in tables)], 1)

    def _count_certified(
        self, features: FeaturePair, query: Tensor, piece: _Piece, g: Any, table: Any, g_id: Tensor, first: int
    ) -> None:
        metric, dim, cosine = features.metric, features.query.dim, features.metric == COSINE
        if self.centre is None:
            self.centre = g.data[0, : g.n, :dim].mean(0)
        low_q = self.triton.pack(query, None, cosine, certified.FIRST_PASS, self.centre)
        low_g = self.triton.pack(piece.features, piece.rows, cosine, certified.FIRST_PASS, self.centre)
        terms = certified.error_terms(low_q.stats, low_g.stats, self.centre, dim, self.triton.CHUNK, metric)
        row, column = self.triton.low_count(low_q, low_g, metric, terms.q, terms.g, terms.slope, table, g_id)
        del low_q, low_g
        self.triton.recheck(self._pack_rows(query, None, metric), g, metric, row, column, table, first)
        self.ambiguous += len(row)

    # tiles and lists

    def pack(
        self, chunk: Chunk, side: int, rows: Tensor | None, pad: int, begin: int = 0, end: int | None = None
    ) -> Any:
        """As in `TorchTiles`, by the kernels."""
        features = (chunk.query, chunk.gallery)[side]
        x = features[begin:end] if rows is None else features
        packed = self.triton.pack(x, rows, chunk.metric == COSINE, "float32", pad=pad)
        return _KernelPacked(packed.data[0], packed.stats[0], packed.n, packed)

    def tile(self, q: Any, i: int, height: int, g: Any, j: int, width: int, metric: int) -> Tensor:
        """As in `TorchTiles`, by the kernels."""
        d: Tensor = self.triton.dense(q.rows.part(i, height), g.rows.part(j, width), metric)
        return d

    def chunk_nearest(
        self, chunk: Chunk, exclude_ptr: Tensor, exclude: Tensor, values: Tensor, columns: Tensor, filled: Tensor
    ) -> None:
        """By the kernel that selects in the product's epilogue, where its lists are long enough.

        What a query must not find is found too and dropped afterwards, hence longer lists.
        """
        k = values.shape[1]
        most = int(exclude_ptr.diff().max()) if len(exclude_ptr) > 1 else 0
        if k + most > self.triton.MAX_K:
            super().chunk_nearest(chunk, exclude_ptr, exclude, values, columns, filled)
            return
        query, gallery, rows, cosine = chunk.query, chunk.gallery, chunk.rows, chunk.metric == COSINE
        device = values.device
        left_out = torch.full((len(query), most), -1, dtype=torch.int64)
        sizes = exclude_ptr.diff()
        entry = torch.arange(len(exclude)) - torch.repeat_interleave(exclude_ptr[:-1], sizes)
        left_out[torch.repeat_interleave(torch.arange(len(query)), sizes), entry] = exclude
        left_out = left_out.to(device)
        used = torch.arange(k, device=device) < filled.to(device)[:, None]
        values.masked_fill_(~used, torch.inf)
        columns.masked_fill_(~used, -1)
        packed = self.triton.pack(query, None, cosine, "float32")
        n = len(gallery) if rows is None else len(rows)
        step = max(1, (1 << 30) // (4 * query.shape[1]) // self.triton.TILE) * self.triton.TILE
        for g0 in range(0, n, step):
            if rows is None:
                part = self.triton.pack(gallery[g0 : g0 + step], None, cosine, "float32")
            else:
                part = self.triton.pack(gallery, rows[g0 : g0 + step], cosine, "float32")
            for q0 in range(0, packed.n, _QUERIES):
                span = slice(q0, min(q0 + _QUERIES, packed.n))
                d, row = self.triton.nearest(packed.part(q0, _QUERIES), part, chunk.metric, min(k + most, part.n))
                column = torch.where(row >= 0, row + (chunk.first_column + g0), -1)
                for i in range(most):
                    column.masked_fill_(column == left_out[span, i : i + 1], -1)
                d = torch.cat([values[span], d.masked_fill(column < 0, torch.inf)], 1)
                column = torch.cat([columns[span], column], 1)
                by_column = torch.where(column < 0, torch.iinfo(torch.int64).max, column).argsort(dim=1, stable=True)
                best, order = d.gather(1, by_column).sort(dim=1, stable=True)
                values[span], columns[span] = best[:, :k], column.gather(1, by_column).gather(1, order)[:, :k]
        filled.copy_((columns >= 0).sum(1))

    def neighbours(
        self, op: str, query: Tensor, gallery: Tensor, k: int, metric: str, square: bool, part: int, parts: int
    ) -> Neighbours:
        """Selection in the epilogue of the product, blocks of rows against all items."""
        if k > self.triton.MAX_K:
            return super().neighbours(op, query, gallery, k, metric, square, part, parts)
        number, cosine, device = METRIC_NUMBERS[metric], metric == "cosine", query.device
        n = len(query) + len(gallery)
        ids = torch.full((n, k), -1, dtype=torch.int32, device=device)
        values = torch.full((n, k), torch.inf, device=device)
        largest = torch.zeros(n, device=device)
        items = torch.arange(n, device=device)
        packed = [self.triton.pack(x, None, cosine, "float32") for x in (query, gallery) if len(x)]
        blocks = [(side, i) for side, x in enumerate(packed) for i in range(0, x.n, _QUERIES)]
        for side, begin in blocks[part::parts]:
            rows = packed[side].part(begin, _QUERIES)
            own = items[begin : begin + rows.n] + (packed[0].n if side else 0)
            lists = [self.triton.nearest(rows, x, number, min(k, x.n), farthest=True) for x in packed]
            firsts = [0, packed[0].n]
            d = torch.cat([nearest for nearest, _, _ in lists], 1).clamp_min(0)
            item = torch.cat(
                [torch.where(r >= 0, r + first, n) for (_, r, _), first in zip(lists, firsts, strict=False)], 1
            )
            top = torch.stack([t for _, _, t in lists]).amax(0).clamp_min(0)
            d, top = (d * d, top * top) if square else (d, top)
            # The item itself stands first, whether it was listed or not; other ties go to the lowest item.
            d = torch.cat([torch.zeros_like(d[:, :1]), d.masked_fill(item == own[:, None], torch.inf)], 1)
            item = torch.cat([own[:, None], item.masked_fill(item == own[:, None], n)], 1)
            order_id = torch.cat([torch.full_like(own[:, None], -1), item[:, 1:]], 1)
            order = order_id.argsort(dim=1, stable=True)
            order = order.gather(1, d.gather(1, order).argsort(dim=1, stable=True))[:, :k]
            item = item.gather(1, order)
            ids[own] = torch.where(item < n, item, -1).int()
            values[own] = d.gather(1, order)
            largest[own] = top
        return Neighbours(ids, values, largest, None)


def _codes(labels: Labels, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Identities of queries and columns as small numbers; -1 for a query that no gallery row shares."""
    own = labels.gallery_pids if pairs.rows is None else labels.gallery_pids[pairs.rows]
    pids, gallery = torch.unique(own, return_inverse=True)
    if len(pids) == 0:
        return torch.full_like(labels.query_pids, -1), gallery
    place = torch.searchsorted(pids, labels.query_pids).clamp_max(len(pids) - 1)
    return torch.where(pids[place] == labels.query_pids, place, -1), gallery
