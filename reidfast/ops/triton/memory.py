# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""memory_match and memory_loss on CUDA: split-N flash attention with keys = values (docs/ops/memory_loss.md).

The functions at the end are the CUDA implementations of ``reidfast::memory_{match,loss}_{forward,backward}``; their
contracts are those of csrc/torch/memory_{match,loss}.cpp. ``select_kernel`` reads the bank once: a program owns a block
of queries and a piece of a part's rows. ``finish_kernel`` merges the pieces in order, so results do not vary from run
to run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from reidfast.ops._op import NoKernel
from reidfast.ops.triton._common import TRITON_TYPES, autotune, bucket, device_scope, dot, narrow

MAX_K = 128  # more are not kept in registers

_PROGRAMS = 264  # two for each multiprocessor of the largest GPU; a constant, so that sums do not depend on the device
_MIN_PIECE = 256  # rows: fewer, and merging would cost more than it spreads
_MAX_CANDIDATES = 512  # of all pieces together: one program merges them in registers


@triton.jit
def load_rows(bank, row, cols, row_stride, mask):
    """[rows, cols] of a part, 0 where masked."""
    return tl.load(bank + row.to(tl.int64)[:, None] * row_stride + cols[None, :], mask=mask, other=0.0)


@triton.jit
def log1p(x):
    """For x >= 0 in float64, right to the last digits also where 1 + x is 1."""
    u = 1.0 + x
    v = tl.where(u == 1.0, 2.0, u)
    return tl.where(u == 1.0, x, tl.log(v) * (x / (v - 1.0)))


@triton.jit
def tile_logits(
    x, bank, at, query_mask, row, row_mask, d, row_stride, scale,
    DOT: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, NATIVE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits [BLOCK_B, BLOCK_N] without the term of |x|^2; ``at`` numbers the queries of all parts."""
    products = tl.zeros((BLOCK_B, BLOCK_N), tl.float32)
    norms = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, d, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        a = tl.load(x + at[:, None] * d + cols[None, :], mask=query_mask[:, None] & (cols < d)[None, :], other=0.0)
        w = load_rows(bank, row, cols, row_stride, row_mask[:, None] & (cols < d)[None, :])
        wide = w.to(tl.float32)
        if not DOT:
            norms += tl.sum(wide * wide, 1)
        if NATIVE:
            products = dot(a, tl.trans(w), products, "ieee")
        else:
            products = dot(a.to(tl.float32), tl.trans(wide), products, PRECISION)
    if DOT:
        return scale * products
    else:
        return 2.0 * scale * products - (scale * norms)[None, :]


@autotune(
    [
        triton.Config({"BLOCK_N": 32}, num_warps=8, num_stages=2),
        triton.Config({"BLOCK_N": 64}, num_warps=8, num_stages=1),
        triton.Config({"BLOCK_N": 16}, num_warps=8, num_stages=2),
        triton.Config({"BLOCK_N": 64}, num_warps=8, num_stages=2),
    ],
    key=["queries_key", "rows_key", "d", "K", "ROWS"],
)
@triton.jit
def select_kernel(
    x, bank, exclude, targets, best_logit, best_row, rest_max, rest_sum, rest_rows,
    queries, rows, d, part_stride, row_stride, piece, blocks, scale, queries_key, rows_key,
    DOT: tl.constexpr, K: tl.constexpr, K2: tl.constexpr, EXCLUDE: tl.constexpr, TARGETS: tl.constexpr,
    ROWS: tl.constexpr, NATIVE: tl.constexpr, PRECISION: tl.constexpr, HALF: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Per piece and query: the K best, and maximum, sum and weighted row sum of the rest.

    Grid: (blocks of queries * pieces, parts, slices of d). Each slice owns BLOCK_D columns of the row sum; with more
    than one, each repeats the products. K = 0: no list, the target is left out instead.
    """
    block, split = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    part, slice_ = tl.program_id(1), tl.program_id(2)
    query = block * BLOCK_B + tl.arange(0, BLOCK_B)
    query_mask = query < queries
    at = part.to(tl.int64) * queries + query
    bank += part.to(tl.int64) * part_stride
    cols = slice_ * BLOCK_D + tl.arange(0, BLOCK_D)
    first = split * piece
    last = tl.minimum(first + piece, rows)
    none = float("-inf")

    slot = tl.arange(0, K2)
    kept = tl.zeros((BLOCK_B, K2), tl.float32) + tl.where(slot < K, none, float("inf"))[None, :]
    kept_row = tl.full((BLOCK_B, K2), -1, tl.int32)
    top = tl.full((BLOCK_B,), none, tl.float32)
    total = tl.zeros((BLOCK_B,), tl.float32)
    if ROWS:
        acc = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    if EXCLUDE:
        skip = tl.load(exclude + query, mask=query_mask, other=-1)
    if TARGETS:
        target = tl.load(targets + query, mask=query_mask, other=-1)

    for start in range(first, last, BLOCK_N):
        row = start + tl.arange(0, BLOCK_N)
        row_mask = row < last
        logit = tile_logits(
            x, bank, at, query_mask, row, row_mask, d, row_stride, scale, DOT, BLOCK_B, BLOCK_N, BLOCK_K, NATIVE,
            PRECISION,
        )  # fmt: skip
        usable = query_mask[:, None] & row_mask[None, :]
        if EXCLUDE:
            usable = usable & (row[None, :] != skip[:, None])
        if TARGETS:
            usable = usable & (row[None, :] != target[:, None])
        bad = usable & (logit != logit)  # NaN: never among the best, and the sum becomes NaN
        logit = tl.where(usable & (logit == logit), logit, none)

        if K > 0:
            # The highest of the tile takes the place of the worst that is kept, until no query gains. Whatever it
            # pushes out comes from an earlier tile and goes over to the rest.
            high, low = tl.max(logit, 1), tl.min(kept, 1)
            gains = high > low
            while tl.max(gains.to(tl.int32), 0) > 0:
                high_row = tl.min(tl.where(logit == high[:, None], row[None, :], 0x7FFFFFFF), 1)
                worst = kept == low[:, None]
                low_row = tl.max(tl.where(worst, kept_row, -2), 1)
                place = tl.min(tl.where(worst & (kept_row == low_row[:, None]), slot[None, :], K2), 1)
                here = gains[:, None] & (slot[None, :] == place[:, None])
                kept = tl.where(here, high[:, None], kept)
                kept_row = tl.where(here, high_row[:, None], kept_row)
                logit = tl.where(gains[:, None] & (row[None, :] == high_row[:, None]), none, logit)

                out = gains & (low_row >= 0)
                new_top = tl.maximum(top, tl.where(out, low, none))
                base = tl.where(new_top == none, 0.0, new_top)
                shrink = tl.exp(top - base)
                e = tl.where(out, tl.exp(tl.where(out, low, none) - base), 0.0)
                total = total * shrink + e
                if ROWS:  # noqa: SIM102  (nested: the first is settled while compiling)
                    if tl.max(out.to(tl.int32), 0) > 0:
                        mask = out[:, None] & (cols < d)[None, :]
                        pushed = load_rows(bank, low_row, cols, row_stride, mask).to(tl.float32)
                        acc = acc * shrink[:, None] + e[:, None] * pushed
                top = new_top
                high, low = tl.max(logit, 1), tl.min(kept, 1)
                gains = high > low

        new_top = tl.maximum(top, tl.max(logit, 1))
        base = tl.where(new_top == none, 0.0, new_top)
        shrink = tl.exp(top - base)
        p = tl.where(bad, float("nan"), tl.exp(logit - base[:, None]))
        total = total * shrink + tl.sum(p, 1)
        top = new_top
        if ROWS:
            w = load_rows(bank, row, cols, row_stride, row_mask[:, None] & (cols < d)[None, :])
            acc = acc * shrink[:, None]
            if HALF:  # p in two halves: 16 bits of it
                upper = narrow(p, w.dtype)
                acc = dot(upper, w, acc, "ieee")
                acc = dot(narrow(p - upper.to(tl.float32), w.dtype), w, acc, "ieee")
            else:
                acc = dot(p, w, acc, PRECISION)

    to = split.to(tl.int64) * tl.num_programs(1) * queries + at
    if slice_ == 0:
        tl.store(rest_max + to, top, mask=query_mask)
        tl.store(rest_sum + to, total, mask=query_mask)
        if K > 0:
            mask = query_mask[:, None] & (slot < K)[None, :]
            tl.store(best_logit + to[:, None] * K + slot[None, :], kept, mask=mask)
            tl.store(best_row + to[:, None] * K + slot[None, :], kept_row, mask=mask)
    if ROWS:
        tl.store(rest_rows + to[:, None] * d + cols[None, :], acc, mask=query_mask[:, None] & (cols < d)[None, :])


@triton.jit
def finish_kernel(
    x, bank, targets, best_logit, best_row, rest_max, rest_sum, rest_rows,
    loss, lse, state, shares, topk_logits, topk, direction,
    queries, rows, d, part_stride, row_stride, scale,
    DOT: tl.constexpr, K: tl.constexpr, K2: tl.constexpr, SPLITS: tl.constexpr, S2: tl.constexpr, C2: tl.constexpr,
    TARGETS: tl.constexpr, LOSS: tl.constexpr, STATE: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """One query: merges the pieces, computes the best anew from the rows themselves, writes the results."""
    at = tl.program_id(0).to(tl.int64)
    count = tl.num_programs(0)  # queries of all parts
    part = at // queries
    bank += part * part_stride
    none = float("-inf")
    slot = tl.arange(0, K2)
    piece = tl.arange(0, S2)
    top = tl.load(rest_max + piece.to(tl.int64) * count + at, mask=piece < SPLITS, other=none)
    total = tl.load(rest_sum + piece.to(tl.int64) * count + at, mask=piece < SPLITS, other=0.0)
    base = tl.max(top, 0)
    chosen = tl.full((K2,), -1, tl.int32)
    losing = 0.0
    last_logit = none
    last_row = -1
    if TARGETS:
        target = tl.load(targets + at % queries)
        chosen = tl.where((slot == 0) & (target >= 0) & (target < rows), target.to(tl.int32), -1)
    else:
        c = tl.arange(0, C2)
        to = ((c // K).to(tl.int64) * count + at) * K + c % K
        logit = tl.load(best_logit + to, mask=c < SPLITS * K, other=none)
        row = tl.load(best_row + to, mask=c < SPLITS * K, other=-1)
        for i in range(K):
            last_logit = tl.max(logit, 0)
            last_row = tl.min(tl.where((logit == last_logit) & (row >= 0), row, 0x7FFFFFFF), 0)
            chosen = tl.where(slot == i, tl.where(last_logit > none, last_row, -1), chosen)
            logit = tl.where(row == last_row, none, logit)
        base = tl.maximum(base, tl.max(logit, 0))
        base = tl.where(base == none, 0.0, base)
        losing = tl.sum(tl.exp(logit - base).to(tl.float64), 0)
    base = tl.where(base == none, 0.0, base)
    factor = tl.exp(top - base)
    rest = tl.sum(total.to(tl.float64) * factor.to(tl.float64), 0) + losing

    direct = tl.zeros((K2,), tl.float32)
    norm = tl.zeros((BLOCK_D,), tl.float64)
    valid = chosen >= 0
    for start in range(0, d, BLOCK_D):
        cols = start + tl.arange(0, BLOCK_D)
        a = tl.load(x + at * d + cols, mask=cols < d, other=0.0).to(tl.float32)
        mask = valid[:, None] & (cols < d)[None, :]
        w = load_rows(bank, chosen, cols, row_stride, mask).to(tl.float32)
        if DOT:
            direct += tl.sum(w * a[None, :], 1)
        else:
            gap = tl.where(mask, w - a[None, :], 0.0)
            direct -= tl.sum(gap * gap, 1)
            norm += a.to(tl.float64) * a.to(tl.float64)
    direct = tl.where(valid, scale * direct, none)
    offset = -scale * tl.sum(norm, 0)  # what every logit of this query has in common
    best_max = tl.max(direct, 0)
    weight = tl.where(valid, tl.exp(direct.to(tl.float64) - best_max.to(tl.float64)), 0.0)
    best_sum = tl.sum(weight, 0)
    lse_best = best_max.to(tl.float64) + tl.log(best_sum)
    some = rest != 0.0  # NaN too
    gap = tl.where(some, offset + base.to(tl.float64) + tl.log(tl.where(some, rest, 1.0)) - lse_best, none)
    soft = tl.where(gap > 0.0, gap, 0.0) + log1p(tl.exp(-tl.abs(gap)))
    soft = tl.where(gap == gap, soft, gap)
    share = 1.0 / (1.0 + tl.exp(-gap))
    if LOSS:
        tl.store(loss + at, soft.to(tl.float32))
    else:
        tl.store(lse + at, (lse_best + soft).to(tl.float32))
        key = tl.where(valid, chosen, 0x7FFFFF00 + slot)
        ahead = (direct[None, :] > direct[:, None]) | (
            (direct[None, :] == direct[:, None]) & (key[None, :] < key[:, None])
        )
        ahead = ahead & (slot < K)[None, :]
        rank = tl.sum(ahead.to(tl.int32), 1)
        tl.store(topk_logits + at * K + rank, direct, mask=slot < K)
        tl.store(topk + at * K + rank, chosen.to(tl.int64), mask=slot < K)
        if STATE:
            tl.store(shares + at * K + rank, tl.exp(direct.to(tl.float64) - lse_best - soft), mask=slot < K)
    if STATE:
        tl.store(state + at, lse_best + soft - offset)

    if ROWS:
        slope = scale * (1.0 if DOT else 2.0)
        rest_weight = (slope * share).to(tl.float32)
        if LOSS:
            best_weight = -slope * share
        else:
            best_weight = slope / (1.0 + tl.exp(gap))
        weights = (best_weight * weight / best_sum).to(tl.float32)
        inverse = tl.where(some, 1.0 / tl.where(some, rest, 1.0), 0.0).to(tl.float32)
        for start in range(0, d, BLOCK_D):
            cols = start + tl.arange(0, BLOCK_D)
            a = tl.load(x + at * d + cols, mask=cols < d, other=0.0).to(tl.float32)
            if DOT:
                a = a * 0.0
            mean = tl.zeros((BLOCK_D,), tl.float32)
            for begin in range(0, SPLITS, CHUNK):
                s = begin + tl.arange(0, CHUNK)
                s_at = s.to(tl.int64) * count + at
                s_factor = tl.exp(tl.load(rest_max + s_at, mask=s < SPLITS, other=none) - base)
                s_mask = (s < SPLITS)[:, None] & (cols < d)[None, :]
                s_rows = tl.load(rest_rows + s_at[:, None] * d + cols[None, :], mask=s_mask, other=0.0)
                mean += tl.sum(s_factor[:, None] * s_rows, 0)
            if not TARGETS:  # what was among the best of a piece but not of all
                for begin_c in range(0, SPLITS * K, CHUNK):
                    n = begin_c + tl.arange(0, CHUNK)
                    l_at = ((n // K).to(tl.int64) * count + at) * K + n % K
                    l_logit = tl.load(best_logit + l_at, mask=n < SPLITS * K, other=none)
                    l_row = tl.load(best_row + l_at, mask=n < SPLITS * K, other=-1)
                    loses = (l_logit < last_logit) | ((l_logit == last_logit) & (l_row > last_row))
                    l_e = tl.exp(tl.where(loses & (l_row >= 0), l_logit, none) - base)
                    l_w = load_rows(bank, l_row, cols, row_stride, (l_e > 0.0)[:, None] & (cols < d)[None, :])
                    mean += tl.sum(l_e[:, None] * l_w.to(tl.float32), 0)
            out = rest_weight * tl.where(some, mean * inverse - a, 0.0)
            w = load_rows(bank, chosen, cols, row_stride, valid[:, None] & (cols < d)[None, :]).to(tl.float32)
            out += tl.sum(tl.where(valid[:, None], weights[:, None] * (w - a[None, :]), 0.0), 0)
            tl.store(direction + at * d + cols, out, mask=cols < d)


@autotune(
    [
        triton.Config({"BLOCK_N": 32}, num_warps=8, num_stages=2),
        triton.Config({"BLOCK_N": 64}, num_warps=8, num_stages=1),
        triton.Config({"BLOCK_N": 16}, num_warps=8, num_stages=2),
    ],
    key=["queries_key", "rows_key", "d", "K"],
)
@triton.jit
def grad_bank_kernel(
    x, bank, exclude, grad_lse, state, picks, pick_weights, grad,
    queries, rows, d, part_stride, row_stride, scale, queries_key, rows_key,
    DOT: tl.constexpr, K: tl.constexpr, EXCLUDE: tl.constexpr, NATIVE: tl.constexpr, PRECISION: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradient of BLOCK_N rows of a part, all queries in order; the picked rows' weights are given.

    Grid: (tiles of rows, parts, slices of d).
    """
    part = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = row < rows
    cols = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    bank += part * part_stride
    acc = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    sums = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, queries, BLOCK_B):
        query = start + tl.arange(0, BLOCK_B)
        query_mask = query < queries
        at = part * queries + query
        logit = tile_logits(
            x, bank, at, query_mask, row, row_mask, d, row_stride, scale, DOT, BLOCK_B, BLOCK_N, BLOCK_K, NATIVE,
            PRECISION,
        )  # fmt: skip
        exact = tl.load(state + at, mask=query_mask, other=0.0)
        near = exact.to(tl.float32)
        g = tl.load(grad_lse + at, mask=query_mask, other=0.0) * tl.exp(near.to(tl.float64) - exact).to(tl.float32)
        weight = g[:, None] * tl.exp(logit - near[:, None])
        if EXCLUDE:
            skip = tl.load(exclude + query, mask=query_mask, other=-1)
            weight = tl.where(row[None, :] == skip[:, None], 0.0, weight)
        for i in range(K):
            pick = tl.load(picks + at * K + i, mask=query_mask, other=-1)
            pick_weight = tl.load(pick_weights + at * K + i, mask=query_mask, other=0.0)
            weight = tl.where(row[None, :] == pick[:, None], pick_weight[:, None], weight)
        weight = tl.where(query_mask[:, None] & row_mask[None, :], weight, 0.0)
        sums += tl.sum(weight, 0)
        mask = query_mask[:, None] & (cols < d)[None, :]
        a = tl.load(x + at[:, None] * d + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        acc = dot(tl.trans(weight), a, acc, PRECISION)
    mask = row_mask[:, None] & (cols < d)[None, :]
    if DOT:
        out = scale * acc
    else:
        w = load_rows(bank, row, cols, row_stride, mask).to(tl.float32)
        out = 2.0 * scale * (acc - sums[:, None] * w)
    to = (part * rows + row)[:, None] * d + cols[None, :]
    tl.store(grad + to, narrow(out, DTYPE), mask=mask)


class _Problem:
    """One call in one shape, [M, B, d] against [M, N, d], and what the kernels need to know of it."""

    def __init__(
        self, op: str, x: Tensor, bank: Tensor, scale: float, metric: str, exclude: Tensor | None, k: int = 1
    ) -> None:
        if torch.float64 in (x.dtype, bank.dtype):
            raise NoKernel(f"{op}: expected float32, float16 or bfloat16 on CUDA, got float64")
        if k > MAX_K:
            raise NoKernel(f"{op}: expected k of at most {MAX_K} on CUDA, got k={k}")
        self.flat = x.dim() == 2
        self.x = x.contiguous()
        self.bank = bank if bank.shape[-1] <= 1 or bank.stride(-1) == 1 else bank.contiguous()
        self.parts = 1 if self.flat else x.shape[0]
        self.queries, self.d = x.shape[-2:]
        self.rows = bank.shape[-2]
        self.exclude = None if exclude is None else exclude.contiguous()
        self.block_d = min(256, max(16, bucket(self.d)))
        self.slices = max(1, triton.cdiv(self.d, self.block_d))
        self.block_b = min(32, max(16, bucket(self.queries)))
        self.sizes = (
            self.queries, self.rows, self.d, 0 if self.flat else self.bank.stride(0), self.bank.stride(-2),
        )  # fmt: skip
        self.scale = float(scale)
        native = x.dtype == bank.dtype and x.dtype != torch.float32
        fast = torch.get_float32_matmul_precision() != "highest"
        self.options = {"DOT": metric == "dot", "NATIVE": native, "PRECISION": "tf32" if fast else "tf32x3"}
        self.options["BLOCK_K"] = min(64 if native else 32, self.block_d)  # columns per step of the products

    def shape(self, *last: int) -> tuple[int, ...]:
        return (self.queries, *last) if self.flat else (self.parts, self.queries, *last)

    def new(self, *last: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.x.new_empty(self.shape(*last), dtype=dtype)


class _Outputs(NamedTuple):
    loss: Tensor | None
    lse: Tensor | None
    logits: Tensor | None
    indices: Tensor | None
    state: Tensor | None
    shares: Tensor | None
    direction: Tensor | None


def _forward(p: _Problem, k: int, targets: Tensor | None, loss: bool, with_rows: bool, with_state: bool) -> _Outputs:
    """Both kernels. Splits depend on the shapes alone."""
    keep = 0 if targets is not None else k
    blocks = triton.cdiv(p.queries, p.block_b)
    splits = triton.cdiv(_PROGRAMS, max(1, p.parts * blocks))
    splits = max(1, min(splits, p.rows // _MIN_PIECE, _MAX_CANDIDATES // max(1, keep)))
    piece = triton.cdiv(triton.cdiv(p.rows, splits), 64) * 64
    splits = max(1, triton.cdiv(p.rows, max(1, piece)))
    out = _Outputs(
        loss=p.new() if loss else None,
        lse=None if loss else p.new(),
        logits=None if loss else p.new(k),
        indices=None if loss else p.new(k, dtype=torch.int64),
        state=p.new(dtype=torch.float64) if with_state else None,
        shares=p.new(k, dtype=torch.float64) if with_state and not loss else None,
        direction=p.new(p.d) if with_rows else None,
    )
    total = p.parts * p.queries
    if total == 0:
        return out
    x, scratch = p.x, p.x
    best_logit = x.new_empty((splits, total, keep), dtype=torch.float32) if keep else scratch
    best_row = x.new_empty((splits, total, keep), dtype=torch.int32) if keep else scratch
    rest_max = x.new_empty((splits, total), dtype=torch.float32)
    rest_sum = x.new_empty((splits, total), dtype=torch.float32)
    rest_rows = x.new_empty((splits, total, p.d), dtype=torch.float32) if with_rows else scratch
    target = targets.contiguous() if targets is not None else scratch
    or_x = lambda t: x if t is None else t  # noqa: E731  (a pointer that is not used)
    width = max(2, bucket(k))
    with device_scope(x):
        select_kernel[(blocks * splits, p.parts, p.slices if with_rows else 1)](
            x, p.bank, or_x(p.exclude), target, best_logit, best_row, rest_max, rest_sum, rest_rows,
            *p.sizes, piece, blocks, p.scale, bucket(p.queries), bucket(p.rows),
            K=keep, K2=width, EXCLUDE=p.exclude is not None, TARGETS=targets is not None, ROWS=with_rows,
            HALF=p.bank.dtype != torch.float32, BLOCK_B=p.block_b, BLOCK_D=p.block_d, **p.options,
        )  # fmt: skip
        finish_kernel[(total,)](
            x, p.bank, target, best_logit, best_row, rest_max, rest_sum, rest_rows,
            *(or_x(t) for t in (out.loss, out.lse, out.state, out.shares, out.logits, out.indices, out.direction)),
            *p.sizes, p.scale,
            DOT=p.options["DOT"], K=k, K2=width, SPLITS=splits, S2=max(2, bucket(splits)),
            C2=max(2, bucket(splits * k)), TARGETS=targets is not None, LOSS=loss, STATE=with_state, ROWS=with_rows,
            BLOCK_D=min(128, p.block_d), CHUNK=16,
        )  # fmt: skip
    return out


def _grad_bank(p: _Problem, grad: Tensor, state: Tensor, picks: Tensor, weights: Tensor) -> Tensor:
    out = torch.empty(p.bank.shape, dtype=p.bank.dtype, device=p.bank.device)
    if out.numel() == 0:
        return out
    with device_scope(p.x):
        grad_bank_kernel[lambda c: (triton.cdiv(p.rows, c["BLOCK_N"]), p.parts, p.slices)](
            p.x, p.bank, p.x if p.exclude is None else p.exclude, grad, state, picks, weights, out,
            *p.sizes, p.scale, bucket(p.queries), bucket(p.rows),
            K=picks.shape[-1], EXCLUDE=p.exclude is not None, DTYPE=TRITON_TYPES[out.dtype], BLOCK_B=p.block_b,
            BLOCK_D=p.block_d, **p.options,
        )  # fmt: skip
    return out


def memory_match_forward(
    x: Tensor, bank: Tensor, k: int, scale: float, metric: str, exclude: Tensor | None, needs_x: bool, needs_bank: bool
) -> tuple[Tensor | None, ...]:
    """``reidfast::memory_match_forward``."""
    p = _Problem("memory_match", x, bank, scale, metric, exclude, k)
    out = _forward(p, k, None, False, needs_x, needs_bank)
    return out.lse, out.logits, out.indices, out.state, out.shares, out.direction


def memory_match_backward(
    grad_lse: Tensor, grad_logits: Tensor, x: Tensor, bank: Tensor, indices: Tensor, state: Tensor | None,
    shares: Tensor | None, direction: Tensor | None, scale: float, metric: str, exclude: Tensor | None,
    needs_x: bool, needs_bank: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """``reidfast::memory_match_backward``."""
    p = _Problem("memory_match", x, bank, scale, metric, exclude)
    g, weights = grad_lse.float().contiguous(), grad_logits.float()
    grad_x = grad_bank = None
    if needs_x and direction is not None:
        usable = (indices >= 0) & (weights != 0)  # a row that nothing flows to does no harm, NaN or not
        at = indices.clamp(min=0)
        rows = bank[at] if p.flat else bank[torch.arange(p.parts, device=x.device)[:, None, None], at]
        rows = rows.float() if metric == "dot" else rows.float() - x.float().unsqueeze(-2)
        slope = scale if metric == "dot" else 2 * scale
        picked = (rows * (slope * weights).unsqueeze(-1)).masked_fill(~usable.unsqueeze(-1), 0).sum(-2)
        grad_x = (g.unsqueeze(-1) * direction + picked).to(x.dtype)
    if needs_bank and state is not None and shares is not None:
        whole = weights + (g.unsqueeze(-1) * shares).float()
        grad_bank = _grad_bank(p, g, state, indices.contiguous(), whole.contiguous())
    return grad_x, grad_bank


def memory_loss_forward(
    x: Tensor, bank: Tensor, k: int | None, targets: Tensor | None, scale: float, metric: str,
    exclude: Tensor | None, needs_x: bool, needs_bank: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """``reidfast::memory_loss_forward``."""
    p = _Problem("memory_loss", x, bank, scale, metric, exclude, k or 1)
    out = _forward(p, k or 1, targets, True, needs_x, needs_bank)
    return out.loss, out.state, out.direction


def memory_loss_backward(
    grad: Tensor, x: Tensor, bank: Tensor | None, loss: Tensor | None, state: Tensor | None,
    direction: Tensor | None, targets: Tensor | None, scale: float, metric: str, exclude: Tensor | None,
    needs_x: bool, needs_bank: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """``reidfast::memory_loss_backward``."""
    grad_x = grad_bank = None
    if needs_x and direction is not None:
        grad_x = (grad.unsqueeze(-1) * direction).to(x.dtype)
    if needs_bank and bank is not None and loss is not None and state is not None and targets is not None:
        p = _Problem("memory_loss", x, bank, scale, metric, exclude)
        g = grad.float().contiguous()
        weights = g * torch.expm1(-loss)  # d loss / d logit of the target is p - 1 = -(1 - e^-loss)
        picks = targets.expand(p.parts, p.queries).contiguous().unsqueeze(-1)
        grad_bank = _grad_bank(p, g, state, picks, weights)
    return grad_x, grad_bank


def memory_match(
    x: Tensor, bank: Tensor, k: int, scale: float, metric: str, exclude: Tensor | None
) -> tuple[Tensor | None, ...]:
    """``reidfast::memory_match``."""
    return memory_match_forward(x, bank, k, scale, metric, exclude, False, False)[:3]


def memory_loss(
    x: Tensor, bank: Tensor, k: int | None, targets: Tensor | None, scale: float, metric: str, exclude: Tensor | None
) -> Tensor | None:
    """``reidfast::memory_loss``."""
    return memory_loss_forward(x, bank, k, targets, scale, metric, exclude, False, False)[0]
