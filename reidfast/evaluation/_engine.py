# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The four things evaluation asks of a device: distances of listed pairs, counts, nearest rows, histograms.

On the CPU the compiled ops serve (csrc/torch/evaluation.cpp); the functions here state the same in plain torch, tile by
tile, and serve CUDA devices and builds without the compiled part. On CUDA the same functions run on the Triton kernels
(reidfast/ops/triton/ranking.py), which make their tiles of distances; ranking goes further (_streaming.py). Lists per
query are CSR on the CPU. Where a gallery is given in chunks, columns count on from chunk to chunk: ``first`` is the
column of a chunk's first row.

``status`` is int64 [3] on the CPU: side (0 query, 1 gallery), kind (0 fine, 1 NaN or inf, 2 too large), row. On CUDA it
is always fine: looking would synchronise; ``validate=True`` looks beforehand.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from reidfast.evaluation._dispatch import Dispatch
from reidfast.ops import _library

COSINE, EUCLIDEAN, SQEUCLIDEAN, DOT = range(4)
CHUNK = 512  # columns of D per product
BLOCK_QUERIES, BLOCK_GALLERY = 4096, 1024  # packed at a time; bounds memory, changes no result
NOT_FINITE, TOO_LARGE = 1, 2


def tile_shape(queries: int, device: str) -> tuple[int, int]:
    """Query rows and gallery rows of a tile; every product has exactly this shape, padded with zeros."""
    if device == "cpu":
        return (32 if queries <= 32 else 128), 576  # a multiple of the widths BLAS kernels have
    return (64 if queries <= 64 else 1024), 8192


def distance_dtype(*features: Tensor) -> torch.dtype:
    """float64 where any features are, else float32."""
    return torch.float64 if any(f.dtype == torch.float64 for f in features) else torch.float32


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """No TensorFloat-32 in products of float32 on CUDA."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def fine() -> Tensor:
    return torch.zeros(3, dtype=torch.int64)


class BadRowError(Exception):
    """A row that has no distances: .status says which."""

    def __init__(self, side: int, kind: int, row: int) -> None:
        self.status = torch.tensor([side, kind, row])


# The Triton kernels while a function below runs on them (`_on_kernels`): they pack rows and make tiles of distances.
_kernels: contextvars.ContextVar[Any] = contextvars.ContextVar("kernels", default=None)


@dataclass
class _Packed:
    data: Tensor  # [padded rows, D], normalised for cosine
    square: Tensor  # [padded rows]
    n: int
    rows: Any = None  # the same as the kernels pack it


def _pack(
    x: Tensor, rows: Tensor | None, metric: int, dtype: torch.dtype, pad: int, side: int, base: int = 0
) -> _Packed:
    if (kernels := _kernels.get()) is not None and dtype == torch.float32:
        packed = kernels.pack(x, rows, metric == COSINE, "float32", pad=pad)
        return _Packed(packed.data[0], packed.stats[0], packed.n, packed)
    x = x if rows is None else x[rows.to(x.device)]
    wide = x.double()
    square = wide.square().sum(1)
    if x.device.type == "cpu":
        _check_rows(x, rows, square, metric, dtype, side, base)
    if metric == COSINE:
        largest = wide.abs().amax(1, keepdim=True)
        wide = wide / torch.where(largest > 0, largest, 1)  # squares of tiny or huge rows stay in range
        norm = wide.square().sum(1, keepdim=True).sqrt()
        wide = wide / torch.where(norm > 0, norm, 1)
    n = len(x)
    data = torch.zeros(-(-n // pad) * pad, x.shape[1], dtype=dtype, device=x.device)
    data[:n] = wide
    padded = torch.zeros(len(data), dtype=dtype, device=x.device)
    padded[:n] = square
    return _Packed(data, padded, n)


def _check_rows(
    x: Tensor, rows: Tensor | None, square: Tensor, metric: int, dtype: torch.dtype, side: int, base: int
) -> None:
    limit = torch.finfo(torch.float64).max if metric == COSINE else torch.finfo(dtype).max / 8
    suspect = torch.nonzero(~(square <= limit)).flatten()
    for i in suspect.tolist():
        finite = bool(torch.isfinite(x[i]).all())
        if finite and metric == COSINE:
            continue
        raise BadRowError(side, TOO_LARGE if finite else NOT_FINITE, base + i if rows is None else int(rows[i]))


def _tile(q: _Packed, i: int, height: int, g: _Packed, j: int, width: int, metric: int) -> Tensor:
    if q.rows is not None:
        return _kernels.get().dense(q.rows.part(i, height), g.rows.part(j, width), metric)
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


@dataclass
class _Block:
    d: Tensor  # [queries, columns]
    q: int  # first query
    column: int  # first column


def _blocks(
    query: Tensor, gallery: Tensor, rows: Tensor | None, metric: int, height: int, width: int
) -> Iterator[_Block]:
    dtype = distance_dtype(query, gallery)
    n = len(gallery) if rows is None else len(rows)
    with full_float32():
        packed = _pack(query, None, metric, dtype, height, 0)
        for g0 in range(0, n, width):
            if rows is None:
                part = _pack(gallery[g0 : g0 + width], None, metric, dtype, width, 1, g0)
            else:
                part = _pack(gallery, rows[g0 : g0 + width], metric, dtype, width, 1)
            for q0 in range(0, packed.n, height):
                d = _tile(packed, q0, height, part, 0, width, metric)
                yield _Block(d[: packed.n - q0, : part.n], q0, g0)


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
            some = tied[i : i + step]
            row, place = self.row[some], self.place[some]
            same = (d[row] == t[some, None]) & (index < self.column[row, place][:, None])
            before[some] = same.sum(1)
        counts[:, self.begin : self.end] += torch.stack([below, equal, before]).to(counts.device)


def count_below_op(device: torch.device) -> Callable[..., None] | None:
    """The kernel that counts on ``device`` (csrc/cuda/count_below.cu), or None where it was not built."""
    return torch.ops.reidfast_eval.count_below.default if device.type == "cuda" and _library.has_cuda else None


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
        here = slice(q, q + len(d) + 1)
        self.op(
            d, first, self.ptr[here], self.values, self.columns, self.most, self.same_ptr[here], self.same, self.drop,
            self.counts,
        )  # fmt: skip


def pair_distances(
    query: Tensor, gallery: Tensor, metric: int, order: Tensor, block_ptr: Tensor, column_ptr: Tensor, columns: Tensor,
    pair_ptr: Tensor, slots: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Distances of the pairs of `_pairs.Blocks`, and status."""
    dtype = distance_dtype(query, gallery)
    out = torch.empty(len(slots), dtype=dtype, device=query.device)
    height, width = tile_shape(len(query), query.device.type)
    try:
        with full_float32():
            for b in range(len(block_ptr) - 1):
                q0, q1 = int(block_ptr[b]), int(block_ptr[b + 1])
                g0, g1 = int(column_ptr[b]), int(column_ptr[b + 1])
                if g0 == g1:
                    continue
                left = _pack(query, order[q0:q1], metric, dtype, height, 0)
                right = _pack(gallery, columns[g0:g1], metric, dtype, width, 1)
                row, slot = _entries(pair_ptr, slots, q0, q1 - q0, 0, g1 - g0, query.device)
                begin, end = int(pair_ptr[q0]), int(pair_ptr[q1])
                for i in range(0, len(left.data), height):
                    tiles = [_tile(left, i, height, right, j, width, metric) for j in range(0, g1 - g0, width)]
                    d = torch.cat(tiles, 1)
                    here = (row >= i) & (row < i + height)
                    out[begin:end][here] = d[row[here] - i, slot[here]]
    except BadRowError as error:
        return out, error.status
    return out, fine()


def count_features(
    query: Tensor, gallery: Tensor, rows: Tensor | None, metric: int, first: int, ptr: Tensor, values: Tensor,
    columns: Tensor, same_ptr: Tensor, same: Tensor, block_queries: int, block_gallery: int, counts: Tensor,
) -> Tensor:  # fmt: skip
    """Adds to counts [3, n] (below, equal, equal at a lower column) what this chunk of the gallery holds."""
    height, width = tile_shape(len(query), query.device.type)
    if (op := count_below_op(query.device)) is not None:
        kernel = _DeviceCounts(op, query.device, ptr, values, columns, same_ptr, same, ptr[:0])
        for block in _blocks(query, gallery, rows, metric, height, width):
            kernel.add(block.d, block.q, first + block.column)
        counts += kernel.counts.to(counts.device)
        return fine()
    tables: dict[int, _ThresholdTable] = {}
    try:
        for block in _blocks(query, gallery, rows, metric, height, width):
            if block.q not in tables:
                tables[block.q] = _ThresholdTable(ptr, values, columns, block.q, len(block.d), block.d.device)
            _leave_out(block.d, same_ptr, same, block.q, first + block.column)
            tables[block.q].add(block.d, first + block.column, counts)
    except BadRowError as error:
        return error.status
    return fine()


def count_distances(
    distances: Tensor, ptr: Tensor, values: Tensor, columns: Tensor, same_ptr: Tensor, same: Tensor, drop: Tensor,
    counts: Tensor,
) -> int:  # fmt: skip
    """The same from distances [Q, G]; ``drop`` lists columns that count for nobody. First row with NaN, or -1."""
    n, gallery = distances.shape
    if (op := count_below_op(distances.device)) is not None:
        rows = distances if gallery <= 1 or distances.stride(1) == 1 else distances.contiguous()
        rows = rows.double() if values.dtype == torch.float64 else rows
        kernel = _DeviceCounts(op, distances.device, ptr, values, columns, same_ptr, same, drop)
        kernel.add(rows, 0, 0)
        counts += kernel.counts.to(counts.device)
        return -1
    height = max(1, 8_000_000 // max(1, gallery))
    bad = -1
    for q in range(0, n, height):
        d = distances[q : q + height].to(values.dtype, copy=True)
        if d.device.type == "cpu" and bad < 0 and torch.isnan(d).any():
            bad = q + int(torch.nonzero(torch.isnan(d).any(1))[0])
        _leave_out(d, same_ptr, same, q, 0)
        d[:, drop.to(d.device)] = torch.nan
        _ThresholdTable(ptr, values, columns, q, len(d), d.device).add(d, 0, counts)
    return bad


def sort_pairs(pair_ptr: Tensor, valid: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The valid pairs of every query in ascending order of values [pairs], equal ones by position: ptr [Q+1], order."""
    query = torch.repeat_interleave(torch.arange(len(pair_ptr) - 1), pair_ptr.diff())
    order = torch.nonzero(valid)[:, 0]
    order = order[torch.sort(values[order], stable=True).indices]
    order = order[torch.sort(query[order], stable=True).indices]
    ptr = torch.zeros_like(pair_ptr)
    ptr[1:] = torch.bincount(query[order], minlength=len(ptr) - 1).cumsum(0)
    return ptr, order


def rank_matrix(
    distances: Tensor, pair_ptr: Tensor, rows: Tensor, valid: Tensor, drop: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """A whole evaluation from distances [Q, G]: ptr and order of `sort_pairs`, values, counts, first row with NaN."""
    query = torch.repeat_interleave(torch.arange(len(distances)), pair_ptr.diff())
    own = distances[query, rows]
    own = own if own.dtype == torch.float64 else own.float()
    ptr, order = sort_pairs(pair_ptr, valid, own)
    values, counts = own[order], torch.zeros(3, len(order), dtype=torch.int64)
    bad = count_distances(distances, ptr, values, rows[order], pair_ptr, rows, drop, counts)
    return ptr, order, values, counts, bad


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


def _nearest_on_kernels(
    query: Tensor, gallery: Tensor, rows: Tensor | None, metric: int, first: int, exclude_ptr: Tensor, exclude: Tensor,
    values: Tensor, columns: Tensor, filled: Tensor,
) -> bool:  # fmt: skip
    """`nearest_features` by the kernel that selects in the product's epilogue; False where that does not take it.

    What a query must not find is found too and dropped afterwards, hence longer lists.
    """
    kernels, k = _kernels.get(), values.shape[1]
    most = int(exclude_ptr.diff().max()) if len(exclude_ptr) > 1 else 0
    if kernels is None or values.dtype != torch.float32 or k + most > kernels.MAX_K:
        return False
    device = values.device
    left_out = torch.full((len(query), most), -1, dtype=torch.int64)
    sizes = exclude_ptr.diff()
    entry = torch.arange(len(exclude)) - torch.repeat_interleave(exclude_ptr[:-1], sizes)
    left_out[torch.repeat_interleave(torch.arange(len(query)), sizes), entry] = exclude
    left_out = left_out.to(device)
    used = torch.arange(k, device=device) < filled.to(device)[:, None]
    values.masked_fill_(~used, torch.inf)
    columns.masked_fill_(~used, -1)
    height = 8192
    packed = kernels.pack(query, None, metric == COSINE, "float32")
    n = len(gallery) if rows is None else len(rows)
    step = max(1, (1 << 30) // (4 * query.shape[1]) // kernels.TILE) * kernels.TILE
    for g0 in range(0, n, step):
        if rows is None:
            part = kernels.pack(gallery[g0 : g0 + step], None, metric == COSINE, "float32")
        else:
            part = kernels.pack(gallery, rows[g0 : g0 + step], metric == COSINE, "float32")
        for q0 in range(0, packed.n, height):
            here = slice(q0, min(q0 + height, packed.n))
            d, row = kernels.nearest(packed.part(q0, height), part, metric, min(k + most, part.n))
            column = torch.where(row >= 0, row + (first + g0), -1)
            for i in range(most):
                column.masked_fill_(column == left_out[here, i : i + 1], -1)
            d = torch.cat([values[here], d.masked_fill(column < 0, torch.inf)], 1)
            column = torch.cat([columns[here], column], 1)
            by_column = torch.where(column < 0, torch.iinfo(torch.int64).max, column).argsort(dim=1, stable=True)
            best, order = d.gather(1, by_column).sort(dim=1, stable=True)
            values[here], columns[here] = best[:, :k], column.gather(1, by_column).gather(1, order)[:, :k]
    filled.copy_((columns >= 0).sum(1))
    return True


def nearest_features(
    query: Tensor, gallery: Tensor, rows: Tensor | None, metric: int, first: int, exclude_ptr: Tensor, exclude: Tensor,
    block_queries: int, block_gallery: int, values: Tensor, columns: Tensor, filled: Tensor,
) -> Tensor:  # fmt: skip
    """Merges this chunk into the k nearest so far: values, columns [Q, k], of which filled [Q] are in use."""
    if _nearest_on_kernels(query, gallery, rows, metric, first, exclude_ptr, exclude, values, columns, filled):
        return fine()
    height, width = tile_shape(len(query), query.device.type)
    k = values.shape[1]
    used = torch.arange(k, device=values.device) < filled.to(values.device)[:, None]
    values.masked_fill_(~used, torch.inf)
    columns.masked_fill_(~used, -1)
    try:
        for block in _blocks(query, gallery, rows, metric, height, width):
            _leave_out(block.d, exclude_ptr, exclude, block.q, first + block.column)
            here = slice(block.q, block.q + len(block.d))
            index = torch.arange(first + block.column, first + block.column + block.d.shape[1], device=values.device)
            left_out = torch.isnan(block.d)
            index = torch.where(left_out, -1, index)
            d = torch.where(left_out, torch.inf, block.d)
            best, column = _keep_smallest(torch.cat([values[here], d], 1), torch.cat([columns[here], index], 1), k)
            values[here], columns[here] = best, column
    except BadRowError as error:
        return error.status
    filled.copy_((columns >= 0).sum(1))
    return fine()


def sort_nearest(values: Tensor, columns: Tensor, filled: Tensor) -> None:
    """Sorts each list by (distance, column) and fills the rest with (inf, -1)."""
    used = torch.arange(values.shape[1], device=values.device) < filled.to(values.device)[:, None]
    v, c = values.masked_fill(~used, torch.inf), columns.masked_fill(~used, torch.iinfo(torch.int64).max)
    by_column = c.argsort(dim=1, stable=True)
    v, c = v.gather(1, by_column), c.gather(1, by_column)
    by_value = v.argsort(dim=1, stable=True)
    v, c = v.gather(1, by_value), c.gather(1, by_value)
    values.copy_(v)
    columns.copy_(c.masked_fill(c == torch.iinfo(torch.int64).max, -1))


def histogram_features(
    query: Tensor, gallery: Tensor, rows: Tensor | None, metric: int, first: int, same_ptr: Tensor, same: Tensor,
    prefix_bits: int, prefixes: Tensor, bits: int, histogram: Tensor,
) -> Tensor:  # fmt: skip
    """Adds to histogram [prefixes, 2^bits] the non-matches whose order-preserving integer begins with a prefix."""
    height, width = tile_shape(len(query), query.device.type)
    try:
        for block in _blocks(query, gallery, rows, metric, height, width):
            _leave_out(block.d, same_ptr, same, block.q, first + block.column)
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
    except BadRowError as error:
        return error.status
    return fine()


def dense_distances(query: Tensor, gallery: Tensor, rows: Tensor | None, metric: int) -> tuple[Tensor, Tensor]:
    """Distances [Q, columns] of a few queries, and status."""
    height, width = tile_shape(len(query), query.device.type)
    n = len(gallery) if rows is None else len(rows)
    out = torch.empty(len(query), n, dtype=distance_dtype(query, gallery), device=query.device)
    try:
        for block in _blocks(query, gallery, rows, metric, height, width):
            out[block.q : block.q + len(block.d), block.column : block.column + block.d.shape[1]] = block.d
    except BadRowError as error:
        return out, error.status
    return out, fine()


def single_shot_closer(
    distances: Tensor, ptr: Tensor, values: Tensor, columns: Tensor, identity: Tensor, identities: int, own: Tensor
) -> Tensor:
    """Images of every identity before each match, in this part of the gallery: [matches, identities] int32, CPU."""
    out = torch.zeros(len(values), identities, dtype=torch.int32)
    index = torch.arange(distances.shape[1])
    for q in range(len(distances)):
        begin, end = int(ptr[q]), int(ptr[q + 1])
        d, t, c = distances[q], values[begin:end, None], columns[begin:end, None]
        counted = (identity >= 0) & (identity != own[q])
        closer = ((d < t) | ((d == t) & (index < c))) & counted
        out[begin:end].index_add_(1, identity[counted].long(), closer[:, counted].int())
    return out


def single_shot_chance(closer: Tensor, ptr: Tensor, sizes: Tensor, max_rank: int) -> Tensor:
    """Expected single-gallery-shot curve of every query, averaged over its matches: [Q, max_rank] float64, CPU."""
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


def _on_kernels(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same on the Triton kernels: float32 rows are packed and multiplied by them."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        from reidfast.ops.triton import ranking  # imported by the first call, not with the package

        token = _kernels.set(ranking)
        try:
            return function(*args)
        finally:
            _kernels.reset(token)

    return call


TRITON_REASON = "" if find_spec("triton") is not None else "Triton is not installed (pip install triton)"
_MATRIX_REASON = "works on distances, not on features; torch and a counting kernel serve CUDA devices"


def _dispatch(name: str, reference: Callable[..., Any], features: bool = True) -> Dispatch:
    return Dispatch(
        name,
        reference=reference,
        triton=_on_kernels(reference) if features and not TRITON_REASON else None,
        triton_reason=TRITON_REASON if features else _MATRIX_REASON,
        native_cuda=False,
    )


PAIR_DISTANCES = _dispatch("pair_distances", pair_distances)
COUNT_FEATURES = _dispatch("count_features", count_features)
COUNT_DISTANCES = _dispatch("count_distances", count_distances, features=False)
SORT_PAIRS = _dispatch("sort_pairs", sort_pairs, features=False)
RANK_MATRIX = _dispatch("rank_matrix", rank_matrix, features=False)
NEAREST_FEATURES = _dispatch("nearest_features", nearest_features)
SORT_NEAREST = _dispatch("sort_nearest", sort_nearest, features=False)
HISTOGRAM_FEATURES = _dispatch("histogram_features", histogram_features)
DENSE_DISTANCES = _dispatch("dense_distances", dense_distances)
SINGLE_SHOT_CLOSER = _dispatch("single_shot_closer", single_shot_closer, features=False)
SINGLE_SHOT_CHANCE = _dispatch("single_shot_chance", single_shot_chance, features=False)
