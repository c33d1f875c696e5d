# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Streaming evaluation on CUDA: counting and top-k in the epilogue of the product, no distance ever in memory.

`pack` makes padded rows that products read without masks. One routine, `products`, sums TILE x TILE products in chunks
of CHUNK columns in a fixed order; every kernel here goes through it, so that a threshold, a counted distance, a found
neighbour and a re-checked pair are the same number. In float32 ("ieee") it is a chain of fused multiply-adds per pair,
whatever the tile. Precisions are a matter of packing (reidfast/evaluation/_backends/certified.py says what for):

    float32     one plane, float32 operands, IEEE products
    tf32x3      two planes x = big + small of TensorFloat-32 numbers; big big + big small + small big
    bf16        one plane of bfloat16
    tf32_low, bf16_low    centred rows, rounded, with the norms that bound the error
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from reidfast.ops.triton._common import INTERPRETED, autotune, bucket, device_scope, dot, narrow

TILE = 32 if INTERPRETED else 128  # rows of a tile, on both sides; a multiple of 32
TILE_NEAREST = 32 if INTERPRETED else 64  # queries of a program of `nearest`
CHUNK = 256  # columns per partial sum: what the error bounds of `certified` are about
ALIGN = 32 if INTERPRETED else 64  # columns are padded to a multiple of this, the longest step of a product
MAX_K = 128  # of `nearest`
GROUP = 32  # pairs of one query that a program of `recheck` takes
KINDS = {"float32": 0, "tf32x3": 1, "bf16": 2, "tf32_low": 3, "bf16_low": 4}
_WORDS = 1 << 19  # of marked pairs that are spread out at a time: 64 MB
_PROGRAMS = 264  # as many pieces as fill a large GPU twice; a constant, so that nothing depends on the device
_COSINE, _EUCLIDEAN, _SQEUCLIDEAN, _DOT = range(4)


@triton.jit
def round_tf32(x):
    """float32 to the nearest number with 10 bits of mantissa, ties to even; NaN and inf stay."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = ((bits + 0xFFF + ((bits >> 13) & 1)) >> 13) << 13
    return tl.where(tl.abs(x) < float("inf"), rounded.to(tl.float32, bitcast=True), x)


@triton.jit
def pack_kernel(
    x, index, centre, out, stats, n, dim, padded, x_row, x_col, plane, stats_ld,
    GATHER: tl.constexpr, COSINE: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: normalised (cosine), rounded, written; and its statistics in float64, see `Packed`."""
    row = tl.program_id(0).to(tl.int64)
    source = row
    if GATHER:
        source = tl.load(index + row, mask=row < n, other=0)
    cols = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, dim, BLOCK):
        at = start + cols
        v = tl.load(x + source * x_row + at.to(tl.int64) * x_col, mask=(at < dim) & (row < n), other=0.0)
        v = v.to(tl.float32).to(tl.float64)
        total += v * v
    square = tl.sum(total, 0)
    scale = square * 0.0 + 1.0
    if COSINE:
        scale = 1.0 / tl.sqrt(tl.where(square > 0.0, square, 1.0))
    own = tl.zeros((BLOCK,), tl.float64)
    kept = tl.zeros((BLOCK,), tl.float64)
    centred = tl.zeros((BLOCK,), tl.float64)
    lost = tl.zeros((BLOCK,), tl.float64)
    along = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, padded, BLOCK):
        at = start + cols
        inside = (at < dim) & (row < n)
        v = tl.load(x + source * x_row + at.to(tl.int64) * x_col, mask=inside, other=0.0)
        v = (v.to(tl.float32).to(tl.float64) * scale).to(tl.float32)
        to = out + row * padded + at
        if KIND == 0:
            tl.store(to, v, mask=at < padded)
        elif KIND == 1:
            big = round_tf32(v)
            tl.store(to, big, mask=at < padded)
            tl.store(to + plane, round_tf32(v - big), mask=at < padded)
        elif KIND == 2:
            low = narrow(v, tl.bfloat16)
            tl.store(to, low, mask=at < padded)
            wide = narrow(v, tl.bfloat16).to(tl.float32).to(tl.float64)
            kept += wide * wide
        else:
            c = tl.load(centre + at, mask=inside, other=0.0)
            exact = v.to(tl.float64) - c.to(tl.float64)
            if KIND == 3:
                wide = round_tf32(exact.to(tl.float32))
                tl.store(to, wide, mask=at < padded)
            else:
                low = narrow(exact.to(tl.float32), tl.bfloat16)
                tl.store(to, low, mask=at < padded)
                wide = low.to(tl.float32)
            rest = exact - wide.to(tl.float64)
            own += v.to(tl.float64) * v.to(tl.float64)
            kept += wide.to(tl.float64) * wide.to(tl.float64)
            centred += exact * exact
            lost += rest * rest
            along += v.to(tl.float64) * c.to(tl.float64)
    if KIND < 2:
        tl.store(stats + row, square)
    elif KIND == 2:
        tl.store(stats + row, tl.sum(kept, 0))
    else:
        tl.store(stats + row, tl.sum(own, 0))
        tl.store(stats + stats_ld + row, tl.sum(centred, 0))
        tl.store(stats + 2 * stats_ld + row, tl.sum(kept, 0))
        tl.store(stats + 3 * stats_ld + row, tl.sum(lost, 0))
        tl.store(stats + 4 * stats_ld + row, tl.sum(along, 0))


@triton.jit
def products(
    q, g, q_row, g_row, q_plane, g_plane, dim,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, CHUNK: tl.constexpr, SEGMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """[HEIGHT, WIDTH] dot products of packed rows. Three segments: small x big, big x small, big x big.

    Offsets within a plane are 32-bit, which saves registers: `Packed` never holds 2^31 elements a plane.
    """
    inner = tl.arange(0, BLOCK_K)
    acc = tl.zeros((HEIGHT, WIDTH), tl.float32)
    for segment in range(SEGMENTS):
        a_plane = q_plane * 0
        b_plane = g_plane * 0
        if SEGMENTS == 3:
            a_plane = q_plane * (segment == 0)
            b_plane = g_plane * (segment == 1)
        a = q + a_plane
        b = g + b_plane
        for start in range(0, dim, CHUNK):
            part = tl.zeros((HEIGHT, WIDTH), tl.float32)
            for k in range(start, tl.minimum(start + CHUNK, dim), BLOCK_K):
                x = tl.load(a + k + (q_row[:, None] * dim + inner[None, :]))
                y = tl.load(b + k + (g_row[:, None] * dim + inner[None, :]))
                part = dot(x, tl.trans(y), part, PRECISION)
            acc += part
    return acc


@triton.jit
def to_distances(c, q_square, g_square, METRIC: tl.constexpr):
    """Distances from products. No rounding can be left out or added by contraction: 2c is exact."""
    if METRIC == 0:
        return 1.0 - c
    elif METRIC == 3:
        return 0.0 - c
    else:
        s = (q_square[:, None] + g_square[None, :]) - 2.0 * c
        s = tl.where(s < 0.0, 0.0, s)  # NaN stays
        if METRIC == 1:
            s = tl.sqrt_rn(s)
        return s


@triton.jit
def swizzle(pid, across_m, across_n, GROUP_M: tl.constexpr):
    """Tile of a program: GROUP_M rows of tiles walk the gallery side by side, so that its rows are read from cache."""
    group = pid // (GROUP_M * across_n)
    height = tl.minimum(across_m - group * GROUP_M, GROUP_M)
    inside = pid % (GROUP_M * across_n)
    return group * GROUP_M + inside % height, inside // height


@triton.jit
def steps_needed(nearest, last, size, values):
    """How many thresholds, from the largest down, have anything below or at them in this tile."""
    need = tl.zeros(size.shape, tl.int32)
    for s in range(tl.max(size, 0)):
        t = tl.load(values + last - s, mask=s < size, other=float("-inf"))
        need += ((t >= nearest) & (s < size)).to(tl.int32)
    return tl.max(need, 0)


@triton.jit
def add_counts(d, keep, column, last, size, values, columns, counts, total):
    """Counts distances [HEIGHT, WIDTH] for the thresholds of each row; those that are not kept are inf."""
    for s in range(steps_needed(tl.min(d, 1), last, size, values)):
        mine = s < size
        t = tl.load(values + last - s, mask=mine, other=float("-inf"))
        below = (d < t[:, None]).to(tl.int32)
        up_to = (d <= t[:, None]).to(tl.int32)
        both = tl.sum(below + (up_to << 16), 1)  # a tile is less than 2^15 wide
        lower = both & 0xFFFF
        tl.atomic_add(counts + last - s, lower.to(tl.int64), mask=mine & (lower > 0), sem="relaxed")
        if tl.max((both >> 16) - lower, 0) > 0:
            own = tl.load(columns + last - s, mask=mine, other=0)
            same = keep & (d == t[:, None]) & mine[:, None]
            equal = tl.sum(same.to(tl.int32), 1)
            before = tl.sum((same & (column[None, :] < own[:, None])).to(tl.int32), 1)
            tl.atomic_add(counts + total + last - s, equal.to(tl.int64), mask=equal > 0, sem="relaxed")
            tl.atomic_add(counts + 2 * total + last - s, before.to(tl.int64), mask=before > 0, sem="relaxed")


def _configs(names: tuple[str, ...] = ("BLOCK_K",)) -> list[triton.Config]:
    grid = ((32, 8, 3), (32, 8, 4), (64, 8, 2), (64, 8, 3))
    return [triton.Config(dict.fromkeys(names, k), num_warps=w, num_stages=s) for k, w, s in grid]


_KEY = ["dim", "SEGMENTS", "PRECISION", "METRIC"]


@autotune(_configs(), key=_KEY)
@triton.jit
def dense_kernel(
    q, g, q_square, g_square, out, rows, columns, ld, q_plane, g_plane, dim, across_m, across_n,
    METRIC: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, SEGMENTS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Distances [rows, columns], written out."""
    m, n = swizzle(tl.program_id(0), across_m, across_n, 8)
    q_row = m * TILE + tl.arange(0, TILE)
    g_row = n * TILE + tl.arange(0, TILE)
    c = products(q, g, q_row, g_row, q_plane, g_plane, dim, TILE, TILE, BLOCK_K, CHUNK, SEGMENTS, PRECISION)
    d = to_distances(c, tl.load(q_square + q_row), tl.load(g_square + g_row), METRIC)
    tl.store(
        out + q_row[:, None].to(tl.int64) * ld + g_row[None, :],
        d,
        mask=(q_row < rows)[:, None] & (g_row < columns)[None, :],
    )


@autotune(_configs(), key=_KEY)
@triton.jit
def pair_tiles_kernel(
    q, g, q_square, g_square, q_index, g_index, q_tile, g_tile, out, q_plane, g_plane, dim,
    METRIC: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, SEGMENTS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Tile t: rows q_index[q_tile[t] ...] against rows g_index[g_tile[t] ...]; both lists are padded with rows."""
    t = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, TILE)
    q_row = tl.load(q_index + tl.load(q_tile + t) + at).to(tl.int32)
    g_row = tl.load(g_index + tl.load(g_tile + t) + at).to(tl.int32)
    c = products(q, g, q_row, g_row, q_plane, g_plane, dim, TILE, TILE, BLOCK_K, CHUNK, SEGMENTS, PRECISION)
    d = to_distances(c, tl.load(q_square + q_row), tl.load(g_square + g_row), METRIC)
    tl.store(out + (t * TILE + at[:, None]) * TILE + at[None, :], d)


@autotune(_configs(), key=_KEY, restore_value=["counts"])
@triton.jit
def count_kernel(
    q, g, q_square, g_square, q_id, g_id, ptr, values, columns, counts, rows, first, total, q_plane, g_plane, dim,
    across_m, across_n,
    METRIC: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, SEGMENTS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Adds to counts [3, total] what a tile holds; rows of the query's own identity never count."""
    m, n = swizzle(tl.program_id(0), across_m, across_n, 8)
    q_row = m * TILE + tl.arange(0, TILE)
    g_row = n * TILE + tl.arange(0, TILE)
    c = products(q, g, q_row, g_row, q_plane, g_plane, dim, TILE, TILE, BLOCK_K, CHUNK, SEGMENTS, PRECISION)
    d = to_distances(c, tl.load(q_square + q_row), tl.load(g_square + g_row), METRIC)
    keep = (tl.load(q_id + q_row)[:, None] != tl.load(g_id + g_row)[None, :]) & (g_row < rows)[None, :]
    d = tl.where(keep & (d == d), d, float("inf"))
    begin, end = tl.load(ptr + q_row), tl.load(ptr + q_row + 1)
    add_counts(d, keep, first + g_row, end - 1, (end - begin).to(tl.int32), values, columns, counts, total)


@autotune(_configs(), key=_KEY, restore_value=["counts"])
@triton.jit
def low_kernel(
    q, g, q_terms, g_terms, q_id, g_id, ptr, values, counts, bits, rows, words, q_ld, g_ld, q_plane, g_plane, dim,
    slope, across_m, across_n,
    METRIC: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, SEGMENTS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The first pass of `certified`: counts what is certain, and marks in bits [., words] the pairs that are not."""
    m, n = swizzle(tl.program_id(0), across_m, across_n, 8)
    q_row = m * TILE + tl.arange(0, TILE)
    g_row = n * TILE + tl.arange(0, TILE)
    c = products(q, g, q_row, g_row, q_plane, g_plane, dim, TILE, TILE, BLOCK_K, CHUNK, SEGMENTS, PRECISION)
    d = (tl.load(q_terms + q_row)[:, None] + tl.load(g_terms + g_row)[None, :]) + slope * c
    e = tl.load(q_terms + q_ld + q_row)[:, None] + tl.load(g_terms + g_ld + g_row)[None, :]
    for i in tl.static_range(2, 5):
        e += tl.load(q_terms + i * q_ld + q_row)[:, None] * tl.load(g_terms + i * g_ld + g_row)[None, :]
    low, high = d - e, d + e
    if METRIC == 1:  # the root is monotone; its own rounding is in the last factors
        low = tl.sqrt_rn(tl.where(low > 0.0, low, 0.0 * low)) * 0.9999997
        high = tl.sqrt_rn(tl.where(high > 0.0, high, 0.0 * high)) * 1.0000003
    elif METRIC == 2:
        low, high = tl.where(low < 0.0, 0.0, low), tl.where(high < 0.0, 0.0, high)
    known = (low == low) & (high == high)
    keep = (tl.load(q_id + q_row)[:, None] != tl.load(g_id + g_row)[None, :]) & (g_row < rows)[None, :]
    low = tl.where(keep, tl.where(known, low, float("-inf")), float("inf"))
    high = tl.where(keep & known, high, float("inf"))

    begin, last = tl.load(ptr + q_row), tl.load(ptr + q_row + 1) - 1
    size = (last + 1 - begin).to(tl.int32)
    steps = steps_needed(tl.min(low, 1), last, size, values)
    unsure = tl.zeros((TILE, TILE), tl.int32)
    for s in range(steps):
        t = tl.load(values + last - s, mask=s < size, other=float("-inf"))
        unsure = unsure | ((low <= t[:, None]) & (high >= t[:, None]) & (s < size)[:, None]).to(tl.int32)
    unsure = tl.where(keep, unsure, 0)
    shift = tl.arange(0, 32)
    word = tl.sum(tl.reshape(unsure, (TILE, TILE // 32, 32)) << shift[None, None, :], 2)
    at = n * (TILE // 32) + tl.arange(0, TILE // 32)
    tl.store(bits + q_row[:, None].to(tl.int64) * words + at[None, :], word)

    high = tl.where(unsure == 0, high, float("inf"))
    for s in range(steps):
        mine = s < size
        t = tl.load(values + last - s, mask=mine, other=float("-inf"))
        lower = tl.sum((high < t[:, None]).to(tl.int32), 1)
        tl.atomic_add(counts + last - s, lower.to(tl.int64), mask=mine & (lower > 0), sem="relaxed")


@autotune(
    [triton.Config({"BLOCK_K": k}, num_warps=w, num_stages=s) for k, w, s in ((32, 1, 3), (64, 1, 2), (32, 2, 3))],
    key=["dim", "METRIC"],
    restore_value=["counts"],
)
@triton.jit
def recheck_kernel(
    q, g, q_square, g_square, group_query, group_begin, pair_ptr, pair_row, ptr, values, columns, counts, first, total,
    dim,
    METRIC: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Counts up to GROUP listed pairs of one query by their float32 distances: `products`, one row high."""
    group = tl.program_id(0)
    query = tl.load(group_query + group)
    at = tl.load(group_begin + group) + tl.arange(0, GROUP)
    listed = at < tl.load(pair_ptr + query + 1)
    row = tl.load(pair_row + at, mask=listed, other=0).to(tl.int32)
    q_row = query.to(tl.int32) + tl.arange(0, 1)
    zero = dim * 0
    c = products(q, g, q_row, row, zero, zero, dim, 1, GROUP, BLOCK_K, CHUNK, 1, "ieee")
    d = to_distances(c, tl.load(q_square + q_row), tl.load(g_square + row), METRIC)
    keep = listed[None, :]
    d = tl.where(keep & (d == d), d, float("inf"))
    begin, end = tl.load(ptr + q_row), tl.load(ptr + q_row + 1)
    add_counts(d, keep, first + row, end - 1, (end - begin).to(tl.int32), values, columns, counts, total)


@autotune(
    [triton.Config({"BLOCK_K": 32}, num_warps=w, num_stages=s) for w, s in ((8, 3), (4, 3), (4, 4))],
    key=["dim", "METRIC", "K2"],
)
@triton.jit
def nearest_kernel(
    q, g, q_square, g_square, best, best_row, farthest, queries, rows, piece, blocks, dim,
    METRIC: tl.constexpr, FARTHEST: tl.constexpr, K: tl.constexpr, K2: tl.constexpr, HEIGHT: tl.constexpr,
    TILE: tl.constexpr, CHUNK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The K nearest of each query among a piece of the gallery, in no order: [pieces, queries, K], row -1 = none.

    FARTHEST: and the largest distance, [pieces, queries].
    """
    block, split = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    query = block * HEIGHT + tl.arange(0, HEIGHT)
    q_square_here = tl.load(q_square + query)
    slot = tl.arange(0, K2)
    kept = tl.zeros((HEIGHT, K2), tl.float32) + tl.where(slot < K, float("inf"), float("-inf"))[None, :]
    kept_row = tl.full((HEIGHT, K2), -1, tl.int32)
    top = tl.full((HEIGHT,), float("-inf"), tl.float32)
    zero = dim * 0
    for start in range(split * piece, tl.minimum(split * piece + piece, rows), TILE):
        row = start + tl.arange(0, TILE)
        c = products(q, g, query, row, zero, zero, dim, HEIGHT, TILE, BLOCK_K, CHUNK, 1, "ieee")
        d = to_distances(c, q_square_here, tl.load(g_square + row), METRIC)
        known = (row < rows)[None, :] & (d == d)
        if FARTHEST:
            top = tl.maximum(top, tl.max(tl.where(known, d, float("-inf")), 1))
        d = tl.where(known, d, float("inf"))
        # The lowest of the tile takes the place of the highest that is kept, until no query gains. Rows come in
        # ascending order, so an equal distance never displaces an earlier row.
        low, high = tl.min(d, 1), tl.max(kept, 1)
        gains = low < high
        while tl.max(gains.to(tl.int32), 0) > 0:
            low_row = tl.min(tl.where(d == low[:, None], row[None, :], 0x7FFFFFFF), 1)
            worst = kept == high[:, None]
            worst_row = tl.max(tl.where(worst, kept_row, -2), 1)
            place = tl.min(tl.where(worst & (kept_row == worst_row[:, None]), slot[None, :], K2), 1)
            here = gains[:, None] & (slot[None, :] == place[:, None])
            kept = tl.where(here, low[:, None], kept)
            kept_row = tl.where(here, low_row[:, None], kept_row)
            d = tl.where(gains[:, None] & (row[None, :] == low_row[:, None]), float("inf"), d)
            low, high = tl.min(d, 1), tl.max(kept, 1)
            gains = low < high
    to = (split.to(tl.int64) * queries + query)[:, None] * K + slot[None, :]
    mask = (query < queries)[:, None] & (slot < K)[None, :]
    tl.store(best + to, kept, mask=mask)
    tl.store(best_row + to, kept_row, mask=mask)
    if FARTHEST:
        tl.store(farthest + split.to(tl.int64) * queries + query, top, mask=query < queries)


@dataclass
class Packed:
    """Rows as products read them, padded with zero rows and columns.

    stats float64 [1 or 5, rows]: |x|^2 (of the rounded row in bf16); of a low precision: |x|^2, |x - c|^2, |low|^2,
    |x - c - low|^2, x.c.
    """

    data: Tensor  # [planes, rows, columns]
    stats: Tensor
    n: int
    kind: str

    @property
    def square(self) -> Tensor:
        """|x|^2 in float32."""
        return self.stats[0].float()

    def part(self, first: int, n: int) -> Packed:
        """Rows [first, first + n) with their padding; ``first`` is a multiple of TILE."""
        high = triton.cdiv(n, TILE) * TILE
        rows = slice(first, first + high)
        return Packed(self.data[:, rows], self.stats[:, rows], max(0, min(n, self.n - first)), self.kind)

    @property
    def plane(self) -> int:
        """Elements from one plane to the next."""
        return self.data.stride(0)


def pack(x: Tensor, rows: Tensor | None, cosine: bool, kind: str, centre: Tensor | None = None, pad: int = 1) -> Packed:
    """Rows of x (float32 or narrower), all or those listed, padded to a multiple of ``pad`` and of TILE."""
    pad = triton.cdiv(pad, TILE) * TILE
    n, dim = (len(x) if rows is None else len(rows)), x.shape[1]
    high, wide = max(1, triton.cdiv(n, pad)) * pad, triton.cdiv(dim, ALIGN) * ALIGN
    dtype = torch.bfloat16 if kind.startswith("bf16") else torch.float32
    data = torch.empty((2 if kind == "tf32x3" else 1, high, wide), dtype=dtype, device=x.device)
    stats = torch.empty((5 if kind.endswith("low") else 1, high), dtype=torch.float64, device=x.device)
    index = x if rows is None else rows.to(x.device)
    if high * wide >= 2**31:
        raise ValueError(f"pack: expected fewer than 2^31 elements at a time, got {high} x {wide}")
    with device_scope(x):
        pack_kernel[(high,)](
            x, index, x if centre is None else centre, data, stats, n, dim, wide, x.stride(0), x.stride(1), high * wide,
            high, GATHER=rows is not None, COSINE=cosine, KIND=KINDS[kind], BLOCK=min(1024, bucket(wide)), num_warps=4,
        )  # fmt: skip
    return Packed(data, stats, n, kind)


def _options(q: Packed, metric: int) -> dict[str, object]:
    precision = "ieee" if q.kind in ("float32", "bf16", "bf16_low") else "tf32"  # bf16 operands have one way only
    return {"METRIC": metric, "TILE": TILE, "CHUNK": CHUNK, "SEGMENTS": len(q.data) * 2 - 1, "PRECISION": precision}


def dense(q: Packed, g: Packed, metric: int) -> Tensor:
    """Distances [q.n, g.n]."""
    out = torch.empty((q.n, g.n), dtype=torch.float32, device=q.data.device)
    m, n = triton.cdiv(q.n, TILE), triton.cdiv(g.n, TILE)
    if out.numel():
        with device_scope(out):
            dense_kernel[(m * n,)](
                q.data, g.data, q.square, g.square, out, q.n, g.n, g.n, q.plane, g.plane, q.data.shape[2], m, n,
                **_options(q, metric),
            )  # fmt: skip
    return out


def pair_tiles(
    q: Packed, g: Packed, metric: int, q_index: Tensor, g_index: Tensor, q_tile: Tensor, g_tile: Tensor
) -> Tensor:
    """Distances [tiles, TILE, TILE]; a tile begins at q_tile[t], g_tile[t] of the padded lists of rows."""
    out = torch.empty((len(q_tile), TILE, TILE), dtype=torch.float32, device=q.data.device)
    if out.numel():
        with device_scope(out):
            pair_tiles_kernel[(len(q_tile),)](
                q.data, g.data, q.square, g.square, q_index, g_index, q_tile, g_tile, out, q.plane, g.plane,
                q.data.shape[2], **_options(q, metric),
            )  # fmt: skip
    return out


@dataclass
class Table:
    """What is counted for a block of queries, on their device: thresholds as CSR, ascending, and identities.

    ``ptr`` has an entry for every padded row; ``q_id`` too. ``counts`` int64 [3, thresholds]: below, equal, before.
    """

    ptr: Tensor
    values: Tensor
    columns: Tensor
    q_id: Tensor
    counts: Tensor


def count(q: Packed, g: Packed, metric: int, table: Table, g_id: Tensor, first: int) -> None:
    """Adds to table.counts the rows of g, columns ``first`` on, that are not of the query's identity."""
    m, n = triton.cdiv(q.n, TILE), triton.cdiv(g.n, TILE)
    if m * n == 0 or len(table.values) == 0:
        return
    with device_scope(q.data):
        count_kernel[(m * n,)](
            q.data, g.data, q.square, g.square, table.q_id, g_id, table.ptr, table.values, table.columns, table.counts,
            g.n, first, len(table.values), q.plane, g.plane, q.data.shape[2], m, n, **_options(q, metric),
        )  # fmt: skip


def low_count(
    q: Packed, g: Packed, metric: int, q_terms: Tensor, g_terms: Tensor, slope: float, table: Table, g_id: Tensor
) -> tuple[Tensor, Tensor]:
    """Counts in table.counts what is certain. Returns the pairs that are not, (row of q, row of g), ascending."""
    m, n = triton.cdiv(q.n, TILE), triton.cdiv(g.n, TILE)
    words = n * (TILE // 32)
    bits = torch.zeros((m * TILE, words), dtype=torch.int32, device=q.data.device)
    if m * n and len(table.values):
        with device_scope(bits):
            low_kernel[(m * n,)](
                q.data, g.data, q_terms, g_terms, table.q_id, g_id, table.ptr, table.values, table.counts, bits, g.n,
                words, q_terms.shape[1], g_terms.shape[1], q.plane, g.plane, q.data.shape[2], slope, m, n,
                **_options(q, metric),
            )  # fmt: skip
    row, word = bits.nonzero(as_tuple=True)
    rows, columns = [row[:0]], [row[:0]]
    shift = torch.arange(32, dtype=torch.int32, device=bits.device)
    for i in range(0, len(row), _WORDS):
        here, there = row[i : i + _WORDS], word[i : i + _WORDS]
        entry, bit = ((bits[here, there][:, None] >> shift) & 1).nonzero(as_tuple=True)
        rows.append(here[entry])
        columns.append(there[entry] * 32 + bit)
    return torch.cat(rows), torch.cat(columns)


def recheck(q: Packed, g: Packed, metric: int, row: Tensor, column: Tensor, table: Table, first: int) -> None:
    """Adds to table.counts the pairs (row of q, row of g), ascending by row, by their float32 distances."""
    if len(row) == 0:
        return
    sizes = torch.bincount(row, minlength=q.n)
    ptr = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
    groups = (sizes + GROUP - 1) // GROUP
    query = torch.repeat_interleave(torch.arange(q.n, device=row.device), groups)
    within = torch.arange(len(query), device=row.device) - torch.repeat_interleave(groups.cumsum(0) - groups, groups)
    begin = ptr[query] + within * GROUP
    with device_scope(row):
        recheck_kernel[(len(query),)](
            q.data, g.data, q.square, g.square, query, begin, ptr, column, table.ptr, table.values, table.columns,
            table.counts, first, len(table.values), q.data.shape[2], METRIC=metric, GROUP=GROUP, CHUNK=CHUNK,
        )  # fmt: skip


def nearest(q: Packed, g: Packed, metric: int, k: int, farthest: bool = False) -> tuple[Tensor, ...]:
    """Up to k nearest rows of g for every row of q: distances and rows [q.n, pieces * k], in no order, row -1 = none.

    With ``farthest`` also the largest distance of every row [q.n].
    """
    blocks = triton.cdiv(q.n, TILE_NEAREST)
    pieces = max(1, min(triton.cdiv(_PROGRAMS, max(1, blocks)), triton.cdiv(g.n, 4 * TILE)))
    piece = triton.cdiv(triton.cdiv(g.n, pieces), TILE) * TILE
    pieces = max(1, triton.cdiv(g.n, max(1, piece)))
    best = torch.full((pieces, q.n, k), torch.inf, dtype=torch.float32, device=q.data.device)
    row = torch.full((pieces, q.n, k), -1, dtype=torch.int32, device=q.data.device)
    top = torch.full((pieces, q.n), -torch.inf, dtype=torch.float32, device=q.data.device)
    if q.n and g.n:
        with device_scope(best):
            nearest_kernel[(blocks * pieces,)](
                q.data, g.data, q.square, g.square, best, row, top, q.n, g.n, piece, blocks, q.data.shape[2],
                METRIC=metric, FARTHEST=farthest, K=k, K2=max(2, bucket(k)), HEIGHT=TILE_NEAREST, TILE=TILE,
                CHUNK=CHUNK,
            )  # fmt: skip
    lists = tuple(t.permute(1, 0, 2).reshape(q.n, pieces * k) for t in (best, row.long()))
    return (*lists, top.amax(0)) if farthest else lists
