# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A product of matrices written by the rules of reidfast.ops.triton._common, to test those rules."""

import triton
import triton.language as tl

from reidfast.ops.triton._common import autotune, dot, narrow


@autotune([triton.Config({}, num_warps=4), triton.Config({}, num_warps=8)], key=["n"])
@triton.jit
def product_kernel(
    x, w, out, m, n, k, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, k, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        a_mask = (rows[:, None] < m) & (inner[None, :] < k)
        b_mask = (columns[None, :] < n) & (inner[:, None] < k)
        a = tl.load(x + rows[:, None].to(tl.int64) * k + inner[None, :], mask=a_mask, other=0.0)
        b = tl.load(w + columns[None, :].to(tl.int64) * k + inner[:, None], mask=b_mask, other=0.0)
        acc = dot(a, b, acc, PRECISION)
    mask = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(out + rows[:, None].to(tl.int64) * n + columns[None, :], narrow(acc, DTYPE), mask=mask)


@triton.jit
def narrow_kernel(x, out, n, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, narrow(tl.load(x + at, mask=at < n), DTYPE), mask=at < n)
