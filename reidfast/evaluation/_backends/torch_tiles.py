# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Evaluation in plain torch, tile by tile: the reference, and what serves CUDA devices without Triton.

Only the distances are made on the features' device; counts and lists stay in host memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reidfast.evaluation._backends import compiled
from reidfast.evaluation._backends.torch_reranking import TorchReranking
from reidfast.evaluation._core.features import NOT_FINITE, TOO_LARGE, Chunk
from reidfast.evaluation._core.options import COSINE, DOT, EUCLIDEAN
from reidfast.evaluation._core.pairs import PairBlocks, expand, offsets

CHUNK = 512  # columns of D per product


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """No TensorFloat-32 in products of float32 on CUDA."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@dataclass
class Packed:
    """Rows as tiles take them: ``data`` [padded rows, D], normalised for cosine, and their squared norms."""

    data: Tensor
    square: Tensor
    n: int


@dataclass
class _Block:
    d: Tensor  # [queries, columns]
    q: int  # first query
    column: int  # first column


def _check_rows(x: Tensor, rows: Tensor | None, square: Tensor, chunk: Chunk, side: int, base: int) -> None:
    limit = torch.finfo(torch.float64).max if chunk.metric == COSINE else torch.finfo(chunk.dtype).max / 8
    suspect = torch.nonzero(~(square <= limit)).flatten()
    for i in suspect.tolist():
        finite = bool(torch.isfinite(x[i]).all())
        if finite and chunk.metric == COSINE:
            continue
        raise chunk.bad_row(side, TOO_LARGE if finite else NOT_FINITE, base + i if rows is None else int(rows[i]))


def _entries(
    ptr: Tensor, flat: Tensor, q: int, n: int, low: int, high: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(row within the block, flat value) of the CSR entries of queries [q, q + n) with values in [low, high)."""
    begin, end = int(ptr[q]), int(ptr[q + n])
    row = torch.repeat_interleave(torch.arange(n), ptr[q + 1 : q + n + 1] - ptr[q : q + n])
    values = flat[begin:end]
    inside = (values >= low) & (values < high)
    return row[inside].to(device), values[inside].to(device)


def _leave_out(block: Tensor, ptr: Tensor, columns: Tensor, q: int, first: int) -> None:
    row, column = _entries(ptr, columns, q, len(block), first, first + block.shape[1], block.device)
    block[row, column - first] = torch.nan


class _ThresholdTable:
    """Thresholds of a block of queries as [n, P], padded with inf, and their counts on the way."""

    def __init__(self, ptr: Tensor, values: Tensor, columns: Tensor, q: int, n: int, device: torch.device) -> None:
        self.begin, self.end = int(ptr[q]), int(ptr[q + n])
        sizes = ptr[q + 1 : q + n + 1] - ptr[q : q + n]
        self.row = torch.repeat_interleave(torch.arange(n), sizes).to(device)
        self.place = (torch.arange(self.begin, self.end) - torch.repeat_interleave(ptr[q : q + n], sizes)).to(device)
        wide = max(1, int(sizes.max()) if n else 1)
        self.t = torch.full((n, wide), torch.inf, dtype=values.dtype, device=device)
        self.t[self.row, self.place] = values[self.begin : self.end].to(device)
        self.column = torch.zeros((n, wide), dtype=torch.int64, device=device)
        self.column[self.row, self.place] = columns[self.begin : self.end].to(device)

    def add(self, d: Tensor, first: int, counts: Tensor) -> None:
        """Adds to counts [3, n] what d [n, columns] holds; NaN counts for nothing."""
        if self.begin == self.end:
            return
        d = d.contiguous()  # NaN is placed behind every threshold, inf ones and padding included
        wide = self.t.shape[1]
        below, up_to = (
            torch.zeros(len(d), wide + 1, dtype=torch.int64, device=d.device)
            .scatter_add_(1, place, torch.ones_like(place))
            .cumsum(1)[self.row, self.place]
            for place in (torch.searchsorted(self.t, d, right=right) for right in (True, False))
        )
        equal = up_to - below
        t = self.t[self.row, self.place]
        before = torch.zeros_like(equal)
        tied = torch.nonzero(equal).flatten()
        index = torch.arange(first, first + d.shape[1], device=d.device)
        step = max(1, 4_000_000 // max(1, d.shape[1]))
        for i in range(0, len(tied), step):
            part = tied[i : i + step]
            row, place = self.row[part], self.place[part]
            same = (d[row] == t[part, None]) & (index < self.column[row, place][:, None])
            before[part] = same.sum(1)
        counts[:, self.begin : self.end] += torch.stack([below, equal, before]).to(counts.device)


class _DeviceCounts:
    """Counting by a kernel: the lists go to the device once, the counts come back once."""

    def __init__(
        self, op: Callable[..., None], device: torch.device, ptr: Tensor, values: Tensor, columns: Tensor,
        same_ptr: Tensor, same: Tensor, drop: Tensor,
    ) -> None:  # fmt: skip
        self.op = op
        self.most = int(ptr.diff().max()) if len(ptr) > 1 else 0
        lists = (ptr, values, columns, same_ptr, same, drop)
        self.ptr, self.values, self.columns, self.same_ptr, self.same, self.drop = (x.to(device) for x in lists)
        self.counts = torch.zeros(3, len(values), dtype=torch.int64, device=device)

    def add(self, d: Tensor, q: int, first: int) -> None:
        """Counts d [n, columns]: queries from q on, columns from ``first`` on."""
        rows = slice(q, q + len(d) + 1)
        self.op(
            d, first, self.ptr[rows], self.values, self.columns, self.most, self.same_ptr[rows], self.same, self.drop,
            self.counts,
        )  # fmt: skip


def _sorted_keys(d: Tensor) -> Tensor:
    """int64 that orders as d (float32) does, in the upper half."""
    bits = (d + 0.0).view(torch.int32).long()
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits) << 32


def _keep_smallest(values: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of every row, sorted; equal values in the order they stand in."""
    k = min(k, values.shape[1])
    if values.dtype == torch.float32 and values.shape[1] < 2**31:
        keys = _sorted_keys(values) + torch.arange(values.shape[1], device=values.device)
        place = keys.topk(k, dim=1, largest=False).values & 0xFFFFFFFF
    else:
        place = values.sort(dim=1, stable=True).indices[:, :k]
    return values.gather(1, place), columns.gather(1, place)


class TorchTiles(TorchReranking):
    """Plain torch, helped by the compiled kernels of the features' device where there are any."""

    name = "reference"

    # tiles of distances

    def pack(
        self, chunk: Chunk, side: int, rows: Tensor | None, pad: int, begin: int = 0, end: int | None = None
    ) -> Any:
        """Rows of the query (side 0) or gallery (side 1): those listed, or from ``begin`` to ``end``."""
        features = (chunk.query, chunk.gallery)[side]
        x = features[begin:end] if rows is None else features[rows.to(features.device)]
        wide = x.double()
        square = wide.square().sum(1)
        if x.device.type == "cpu":
            _check_rows(x, rows, square, chunk, side, begin)
        if chunk.metric == COSINE:
            largest = wide.abs().amax(1, keepdim=True)
            wide = wide / torch.where(largest > 0, largest, 1)  # squares of tiny or huge rows stay in range
            norm = wide.square().sum(1, keepdim=True).sqrt()
            wide = wide / torch.where(norm > 0, norm, 1)
        n = len(x)
        data = torch.zeros(-(-n // pad) * pad, x.shape[1], dtype=chunk.dtype, device=x.device)
        data[:n] = wide
        padded = torch.zeros(len(data), dtype=chunk.dtype, device=x.device)
        padded[:n] = square
        return Packed(data, padded, n)

    def tile(self, q: Any, i: int, height: int, g: Any, j: int, width: int, metric: int) -> Tensor:
        """Distances of packed queries [i, i + height) to packed gallery rows [j, j + width)."""
        a, b = q.data[i : i + height], g.data[j : j + width]
        c = a[:, :CHUNK] @ b[:, :CHUNK].T
        for k in range(CHUNK, a.shape[1], CHUNK):
            c = torch.addmm(c, a[:, k : k + CHUNK], b[:, k : k + CHUNK].T)
        if metric == COSINE:
            return 1 - c
        if metric == DOT:
            return -c
        square = ((q.square[i : i + height, None] + g.square[j : j + width]) - 2 * c).clamp_min(0)
        # By way of float64: torch's own float32 root is not the nearest float on every CPU.
        return square.double().sqrt().to(square.dtype) if metric == EUCLIDEAN else square

    def blocks(self, chunk: Chunk) -> Iterator[_Block]:
        """All distances of a chunk, a tile at a time."""
        height, width = self.tile_shape(chunk.query)
        n = len(chunk.gallery) if chunk.rows is None else len(chunk.rows)
        with full_float32():
            packed = self.pack(chunk, 0, None, height)
            for g0 in range(0, n, width):
                rows = None if chunk.rows is None else chunk.rows[g0 : g0 + width]
                part = self.pack(chunk, 1, rows, width, g0, g0 + width)
                for q0 in range(0, packed.n, height):
                    d = self.tile(packed, q0, height, part, 0, width, chunk.metric)
                    yield _Block(d[: packed.n - q0, : part.n], q0, g0)

    def tile_shape(self, query: Tensor) -> tuple[int, int]:
        if query.device.type == "cpu":
            return compiled.tile_shape(len(query))
        return (64 if len(query) <= 64 else 1024), 8192

    def full_height(self, query: Tensor, queries: int) -> Tensor:
        return compiled.full_height(query, queries)

    def chunk_pair_distances(self, chunk: Chunk, blocks: PairBlocks) -> Tensor:
        out = torch.empty(len(blocks.slots), dtype=chunk.dtype, device=chunk.query.device)
        height, width = self.tile_shape(chunk.query)
        block_ptr, column_ptr = blocks.block_ptr.tolist(), blocks.column_ptr.tolist()
        with full_float32():
            for b in range(len(block_ptr) - 1):
                (q0, q1), (g0, g1) = block_ptr[b : b + 2], column_ptr[b : b + 2]
                if g0 == g1:
                    continue
                left = self.pack(chunk, 0, blocks.order[q0:q1], height)
                right = self.pack(chunk, 1, blocks.rows[g0:g1], width)
                row, slot = _entries(blocks.pair_ptr, blocks.slots, q0, q1 - q0, 0, g1 - g0, out.device)
                begin, end = int(blocks.pair_ptr[q0]), int(blocks.pair_ptr[q1])
                for i in range(0, left.n, height):
                    tiles = [
                        self.tile(left, i, height, right, j, width, chunk.metric) for j in range(0, g1 - g0, width)
                    ]
                    d = torch.cat(tiles, 1)
                    inside = (row >= i) & (row < i + height)
                    out[begin:end][inside] = d[row[inside] - i, slot[inside]]
        return out

    def chunk_counts(
        self, chunk: Chunk, ptr: Tensor, values: Tensor, columns: Tensor, same_ptr: Tensor, same: Tensor, counts: Tensor
    ) -> None:
        first, device = chunk.first_column, chunk.query.device
        if self.kernels is not None:
            kernel = _DeviceCounts(self.kernels.count_below, device, ptr, values, columns, same_ptr, same, ptr[:0])
            for block in self.blocks(chunk):
                kernel.add(block.d, block.q, first + block.column)
            counts += kernel.counts.to(counts.device)
            return
        tables: dict[int, _ThresholdTable] = {}
        for block in self.blocks(chunk):
            if block.q not in tables:
                tables[block.q] = _ThresholdTable(ptr, values, columns, block.q, len(block.d), device)
            _leave_out(block.d, same_ptr, same, block.q, first + block.column)
            tables[block.q].add(block.d, first + block.column, counts)

    def chunk_nearest(
        self, chunk: Chunk, exclude_ptr: Tensor, exclude: Tensor, values: Tensor, columns: Tensor, filled: Tensor
    ) -> None:
        k = values.shape[1]
        used = torch.arange(k, device=values.device) < filled.to(values.device)[:, None]
        values.masked_fill_(~used, torch.inf)
        columns.masked_fill_(~used, -1)
        for block in self.blocks(chunk):
            first = chunk.first_column + block.column
            _leave_out(block.d, exclude_ptr, exclude, block.q, first)
            span = slice(block.q, block.q + len(block.d))
            index = torch.arange(first, first + block.d.shape[1], device=values.device)
            left_out = torch.isnan(block.d)
            index = torch.where(left_out, -1, index)
            d = torch.where(left_out, torch.inf, block.d)
            best, column = _keep_smallest(torch.cat([values[span], d], 1), torch.cat([columns[span], index], 1), k)
            values[span], columns[span] = best, column
        filled.copy_((columns >= 0).sum(1))

    def sort_nearest(self, values: Tensor, columns: Tensor, filled: Tensor) -> None:
        used = torch.arange(values.shape[1], device=values.device) < filled.to(values.device)[:, None]
        v, c = values.masked_fill(~used, torch.inf), columns.masked_fill(~used, torch.iinfo(torch.int64).max)
        by_column = c.argsort(dim=1, stable=True)
        v, c = v.gather(1, by_column), c.gather(1, by_column)
        by_value = v.argsort(dim=1, stable=True)
        v, c = v.gather(1, by_value), c.gather(1, by_value)
        values.copy_(v)
        columns.copy_(c.masked_fill(c == torch.iinfo(torch.int64).max, -1))

    def chunk_histogram(
        self, chunk: Chunk, same_ptr: Tensor, same: Tensor, prefix_bits: int, prefixes: Tensor, bits: int,
        histogram: Tensor,
    ) -> None:  # fmt: skip
        for block in self.blocks(chunk):
            _leave_out(block.d, same_ptr, same, block.q, chunk.first_column + block.column)
            d = block.d[~torch.isnan(block.d)] + 0.0
            size = 32 if d.dtype == torch.float32 else 64
            signed = d.view(torch.int32).long() if size == 32 else d.view(torch.int64)
            sign = 1 << 31 if size == 32 else torch.iinfo(torch.int64).min
            raw = signed & 0xFFFFFFFF if size == 32 else signed
            key = torch.where(signed < 0, ~raw, raw ^ sign)
            mask = (1 << bits) - 1
            part = (key >> (size - prefix_bits - bits)) & mask  # arithmetic shift: the mask drops the sign's copies
            head = (key >> (size - prefix_bits)) & ((1 << prefix_bits) - 1) if prefix_bits else torch.zeros_like(key)
            for i, prefix in enumerate(prefixes.tolist()):
                histogram[i] += torch.bincount(part[head == prefix], minlength=1 << bits).to(histogram.device)

    def chunk_distances(self, chunk: Chunk) -> Tensor:
        n = len(chunk.gallery) if chunk.rows is None else len(chunk.rows)
        out = torch.empty(len(chunk.query), n, dtype=chunk.dtype, device=chunk.query.device)
        for block in self.blocks(chunk):
            out[block.q : block.q + len(block.d), block.column : block.column + block.d.shape[1]] = block.d
        return out

    # lists and matrices

    def find_pairs(
        self, query_pids: Tensor, gallery_pids: Tensor, query_camids: Tensor | None, gallery_camids: Tensor | None
    ) -> tuple[Tensor, ...]:
        order = gallery_pids.argsort(stable=True)
        in_order = gallery_pids[order]
        start = torch.searchsorted(in_order, query_pids)
        size = torch.searchsorted(in_order, query_pids, right=True) - start
        column = order[expand(start, size)]
        query = torch.repeat_interleave(torch.arange(len(query_pids)), size)
        if query_camids is None or gallery_camids is None:
            valid = torch.ones(len(column), dtype=torch.bool)
        else:
            valid = gallery_camids[column] != query_camids[query]
        return offsets(size), column, valid, query, order, start, size

    def sort_pairs(self, pair_ptr: Tensor, valid: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        query = torch.repeat_interleave(torch.arange(len(pair_ptr) - 1), pair_ptr.diff())
        order = torch.nonzero(valid)[:, 0]
        order = order[torch.sort(values[order], stable=True).indices]
        order = order[torch.sort(query[order], stable=True).indices]
        return offsets(torch.bincount(query[order], minlength=len(pair_ptr) - 1)), order

    def rank_matrix(
        self, op: str, distances: Tensor, pair_ptr: Tensor, rows: Tensor, valid: Tensor, drop: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        query = torch.repeat_interleave(torch.arange(len(distances)), pair_ptr.diff())
        own = distances[query, rows]
        own = own if own.dtype == torch.float64 else own.float()
        ptr, order = self.sort_pairs(pair_ptr, valid, own)
        values, counts = own[order], torch.zeros(3, len(order), dtype=torch.int64)
        self.count_matrix(op, distances, ptr, values, rows[order], pair_ptr, rows, drop, counts)
        return ptr, order, values, counts

    def count_matrix(
        self, op: str, distances: Tensor, ptr: Tensor, values: Tensor, columns: Tensor, same_ptr: Tensor, same: Tensor,
        drop: Tensor, counts: Tensor,
    ) -> None:  # fmt: skip
        n, gallery = distances.shape
        if self.kernels is not None:
            rows = distances if gallery <= 1 or distances.stride(1) == 1 else distances.contiguous()
            rows = rows.double() if values.dtype == torch.float64 else rows
            kernel = _DeviceCounts(
                self.kernels.count_below, distances.device, ptr, values, columns, same_ptr, same, drop
            )
            kernel.add(rows, 0, 0)
            counts += kernel.counts.to(counts.device)
            return
        height = max(1, 8_000_000 // max(1, gallery))
        for q in range(0, n, height):
            d = distances[q : q + height].to(values.dtype, copy=True)
            if d.device.type == "cpu" and bool(torch.isnan(d).any()):
                raise compiled.nan_distance(op, q + int(torch.nonzero(torch.isnan(d).any(1))[0]))
            _leave_out(d, same_ptr, same, q, 0)
            d[:, drop.to(d.device)] = torch.nan
            _ThresholdTable(ptr, values, columns, q, len(d), d.device).add(d, 0, counts)

    def single_shot_closer(
        self, distances: Tensor, ptr: Tensor, values: Tensor, columns: Tensor, identity: Tensor, identities: int,
        own: Tensor,
    ) -> Tensor:  # fmt: skip
        out = torch.zeros(len(values), identities, dtype=torch.int32)
        index = torch.arange(distances.shape[1])
        for q in range(len(distances)):
            begin, end = int(ptr[q]), int(ptr[q + 1])
            d, t, c = distances[q], values[begin:end, None], columns[begin:end, None]
            counted = (identity >= 0) & (identity != own[q])
            closer = ((d < t) | ((d == t) & (index < c))) & counted
            out[begin:end].index_add_(1, identity[counted].long(), closer[:, counted].int())
        return out

    def single_shot_chance(self, closer: Tensor, ptr: Tensor, sizes: Tensor, max_rank: int) -> Tensor:
        out = torch.zeros(len(ptr) - 1, max_rank, dtype=torch.float64)
        for q in range(len(out)):
            begin, end = int(ptr[q]), int(ptr[q + 1])
            if begin == end:
                continue
            share = closer[begin:end].double() / sizes
            pmf = torch.zeros(end - begin, max_rank, dtype=torch.float64)
            pmf[:, 0] = 1
            for i in range(len(sizes)):
                p = share[:, i : i + 1]
                pmf = pmf * (1 - p) + torch.nn.functional.pad(pmf, (1, 0))[:, :-1] * p
            out[q] = pmf.cumsum(1).mean(0)
        return out
