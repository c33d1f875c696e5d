# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Softmax attention, weighted pooling and overlap in one read of the map; derivation in docs/ops/diverse_attention.md.

Forward: one program per sample and block of channels. Backward: one program per sample, stretch of channels and block
of cells writes the map's gradient and its share of the attention's; a second kernel adds the shares in order and goes
on to the logits. Every program computes the softmax anew: K L exponentials cost less than their way through memory.
No atomics; the order of every sum depends on the shapes alone, also under autotuning.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from reidfast.ops._layout import empty_map, is_channels_last
from reidfast.ops.reference.diverse_attention import diverse_attention as reference
from reidfast.ops.triton._common import TRITON_TYPES, autotune, device_scope, dot, narrow

MAX_MAPS = 32  # more attention maps than this, and float64, are served by plain PyTorch
MAX_CELLS = 32  # of one block; longer rows are walked block by block
BLOCK_D = 64  # channels of one step of backward: fixed, because it decides the order of a sum


@triton.jit
def load_logits(z, rows, start, maps, cells, BLOCK_L: tl.constexpr):
    """Float32 tile (rows, BLOCK_L) of one sample's logits; -inf beyond the last cell, 0 beyond the last map."""
    at = start + tl.arange(0, BLOCK_L)
    inside = (rows[:, None] < maps) & (at[None, :] < cells)
    logits = tl.load(z + rows[:, None].to(tl.int64) * cells + at[None, :], mask=inside, other=0.0).to(tl.float32)
    return tl.where(at[None, :] < cells, logits, float("-inf"))


@triton.jit
def softmax_statistics(z, rows, maps, cells, BLOCK_L: tl.constexpr, ONE: tl.constexpr):
    """Largest logit and sum of exponentials of every row. A row of -inf: 0 and 0, so that its softmax is NaN."""
    top = tl.full(rows.shape, float("-inf"), tl.float32)
    for start in range(0, BLOCK_L if ONE else cells, BLOCK_L):
        top = tl.maximum(top, tl.max(load_logits(z, rows, start, maps, cells, BLOCK_L), 1))
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros(rows.shape, tl.float32)
    for start in range(0, BLOCK_L if ONE else cells, BLOCK_L):
        total += tl.sum(tl.exp(load_logits(z, rows, start, maps, cells, BLOCK_L) - top[:, None]), 1)
    return top, total


@triton.jit
def softmax_tile(z, rows, start, maps, cells, top, total, BLOCK_L: tl.constexpr):
    """Attention (rows, BLOCK_L) in float32; 0 outside the map."""
    at = start + tl.arange(0, BLOCK_L)
    a = tl.exp(load_logits(z, rows, start, maps, cells, BLOCK_L) - top[:, None]) / total[:, None]
    return tl.where((rows[:, None] < maps) & (at[None, :] < cells), a, 0.0)


@triton.jit
def off_diagonal(gram, rows, maps):
    """G - I: the diagonal is 1 exactly, and its rounding would only add noise."""
    inside = (rows[:, None] < maps) & (rows[None, :] < maps) & (rows[:, None] != rows[None, :])
    return tl.where(inside, gram, 0.0)


@autotune([triton.Config({"BLOCK_D": n}, num_warps=4) for n in (64, 128, 32)], key=["dim", "MAPS", "BLOCK_L"])
@triton.jit
def forward_kernel(
    x,
    z,
    pooled,
    attention,
    overlap,
    dim,
    maps,
    cells,
    x_b,
    x_d,
    x_l,
    MAPS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    ONE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    channels = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    rows = tl.arange(0, MAPS)
    logits = z + b * maps * cells
    top, total = softmax_statistics(logits, rows, maps, cells, BLOCK_L, ONE)

    acc = tl.zeros((MAPS, BLOCK_D), tl.float32)
    for start in range(0, BLOCK_L if ONE else cells, BLOCK_L):
        at = (start + tl.arange(0, BLOCK_L)).to(tl.int64)
        in_map = (at[:, None] < cells) & (channels[None, :] < dim)
        tile = tl.load(x + b * x_b + at[:, None] * x_l + channels[None, :] * x_d, mask=in_map, other=0.0)
        a = softmax_tile(logits, rows, start, maps, cells, top, total, BLOCK_L)
        acc = dot(a, tile.to(tl.float32), acc, "tf32x3")
    in_pooled = (rows[:, None] < maps) & (channels[None, :] < dim)
    to = pooled + (b * maps + rows[:, None]) * dim + channels[None, :]
    tl.store(to, narrow(acc, DTYPE), mask=in_pooled)

    if tl.program_id(1) == 0:
        gram = tl.zeros((MAPS, MAPS), tl.float32)
        for start in range(0, BLOCK_L if ONE else cells, BLOCK_L):
            at = (start + tl.arange(0, BLOCK_L)).to(tl.int64)
            a = softmax_tile(logits, rows, start, maps, cells, top, total, BLOCK_L)
            valid = (rows[:, None] < maps) & (at[None, :] < cells)
            tl.store(attention + (b * maps + rows[:, None]) * cells + at[None, :], narrow(a, DTYPE), mask=valid)
            root = tl.sqrt(a)
            gram = dot(root, tl.trans(root), gram, "ieee")
        off = off_diagonal(gram, rows, maps)
        tl.store(overlap + b, tl.sum(tl.sum(off * off, 1), 0))


@triton.jit
def backward_map_kernel(
    x,
    z,
    grad_pooled,
    grad_x,
    share,
    dim,
    maps,
    cells,
    x_b,
    x_d,
    x_l,
    grad_b,
    grad_d,
    grad_l,
    CHUNK: tl.constexpr,
    MAPS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    ONE: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_Z: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, MAPS)
    first = tl.program_id(2) * BLOCK_L
    at = (first + tl.arange(0, BLOCK_L)).to(tl.int64)
    logits = z + b * maps * cells
    if NEEDS_X:
        top, total = softmax_statistics(logits, rows, maps, cells, BLOCK_L, ONE)
        weights = tl.trans(softmax_tile(logits, rows, first, maps, cells, top, total, BLOCK_L))
    acc = tl.zeros((MAPS, BLOCK_L), tl.float32)
    for start in range(0, CHUNK, BLOCK_D):
        channels = (tl.program_id(1) * CHUNK + start + tl.arange(0, BLOCK_D)).to(tl.int64)
        in_pooled = (rows[:, None] < maps) & (channels[None, :] < dim)
        g = tl.load(grad_pooled + (b * maps + rows[:, None]) * dim + channels[None, :], mask=in_pooled, other=0.0)
        g = g.to(tl.float32)
        if NEEDS_Z:
            in_map = (channels[:, None] < dim) & (at[None, :] < cells)
            tile = tl.load(x + b * x_b + channels[:, None] * x_d + at[None, :] * x_l, mask=in_map, other=0.0)
            acc = dot(g, tile.to(tl.float32), acc, "tf32x3")
        if NEEDS_X:
            in_grad = (at[:, None] < cells) & (channels[None, :] < dim)
            product = dot(weights, g, tl.zeros((BLOCK_L, BLOCK_D), tl.float32), "tf32x3")
            to = grad_x + b * grad_b + at[:, None] * grad_l + channels[None, :] * grad_d
            tl.store(to, narrow(product, DTYPE), mask=in_grad)
    if NEEDS_Z:
        valid = (rows[:, None] < maps) & (at[None, :] < cells)
        part = b * tl.num_programs(1) + tl.program_id(1)
        tl.store(share + (part * maps + rows[:, None]) * cells + at[None, :], acc, mask=valid)


@triton.jit
def attention_gradient(
    share,
    grad_attention,
    b,
    rows,
    start,
    parts,
    maps,
    cells,
    BLOCK_L: tl.constexpr,
    POOLED: tl.constexpr,
    ATTENTION: tl.constexpr,
):
    """dL/dA (rows, BLOCK_L): the shares of the stretches of channels in their order, and what comes in directly."""
    at = start + tl.arange(0, BLOCK_L)
    inside = (rows[:, None] < maps) & (at[None, :] < cells)
    total = tl.zeros((rows.shape[0], BLOCK_L), tl.float32)
    if POOLED:
        for part in range(0, parts):
            row = (b * parts + part) * maps + rows[:, None]
            total += tl.load(share + row * cells + at[None, :], mask=inside, other=0.0)
    if ATTENTION:
        row = b * maps + rows[:, None]
        total += tl.load(grad_attention + row * cells + at[None, :], mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def backward_logits_kernel(
    z,
    share,
    grad_attention,
    grad_overlap,
    grad_z,
    parts,
    maps,
    cells,
    MAPS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    ONE: tl.constexpr,
    POOLED: tl.constexpr,
    ATTENTION: tl.constexpr,
    OVERLAP: tl.constexpr,
    DTYPE: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, MAPS)
    logits = z + b * maps * cells
    top, total = softmax_statistics(logits, rows, maps, cells, BLOCK_L, ONE)

    inner = tl.zeros((MAPS,), tl.float32)  # <A, dL/dA> of every map
    gram = tl.zeros((MAPS, MAPS), tl.float32)
    for start in range(0, BLOCK_L if ONE else cells, BLOCK_L):
        a = softmax_tile(logits, rows, start, maps, cells, top, total, BLOCK_L)
        d = attention_gradient(share, grad_attention, b, rows, start, parts, maps, cells, BLOCK_L, POOLED, ATTENTION)
        inner += tl.sum(a * d, 1)
        if OVERLAP:
            root = tl.sqrt(a)
            gram = dot(root, tl.trans(root), gram, "ieee")

    if OVERLAP:
        off = off_diagonal(gram, rows, maps)
        pull = tl.sum(off * off, 1)  # rowsum(H o R), because sum_l R_kl R_jl = G_kj
        scale = 2.0 * tl.load(grad_overlap + b)
    for start in range(0, BLOCK_L if ONE else cells, BLOCK_L):
        a = softmax_tile(logits, rows, start, maps, cells, top, total, BLOCK_L)
        d = attention_gradient(share, grad_attention, b, rows, start, parts, maps, cells, BLOCK_L, POOLED, ATTENTION)
        gradient = a * (d - inner[:, None])
        if OVERLAP:
            root = tl.sqrt(a)
            h = dot(off, root, tl.zeros((MAPS, BLOCK_L), tl.float32), "ieee")
            gradient += scale * (h * root - a * pull[:, None])
        at = start + tl.arange(0, BLOCK_L)
        inside = (rows[:, None] < maps) & (at[None, :] < cells)
        tl.store(grad_z + (b * maps + rows[:, None]) * cells + at[None, :], narrow(gradient, DTYPE), mask=inside)


def served(features: Tensor, logits: Tensor) -> bool:
    """Whether the kernels take these; the rest is plain PyTorch."""
    return features.dtype != torch.float64 and logits.shape[1] <= MAX_MAPS


def channels_per_part(batch: int, dim: int) -> int:
    """Channels of one backward program: long stretches where the batch fills the GPU, short ones where it does not."""
    return 256 if batch * dim >= 256 * 256 else BLOCK_D


def _blocks(maps: int, cells: int) -> dict[str, int | bool]:
    rows = max(16, triton.next_power_of_2(maps))
    block = min(MAX_CELLS, max(16, triton.next_power_of_2(cells)))
    return {"MAPS": rows, "BLOCK_L": block, "ONE": cells <= block}


def diverse_attention(features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled features, attention and overlap; what ``reidfast::diverse_attention`` runs on CUDA, below autograd."""
    if not served(features, logits):
        return reference(features, logits)
    x, z = features.flatten(2), logits.flatten(2).contiguous()
    (batch, dim, cells), maps = x.shape, z.shape[1]
    pooled = x.new_empty((batch, maps, dim))
    attention = x.new_empty((batch, maps, cells))
    overlap = x.new_empty((batch,), dtype=torch.float32)
    if z.numel() == 0:
        return pooled.zero_(), attention, overlap.zero_()

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        return batch, max(1, triton.cdiv(dim, meta["BLOCK_D"]))

    with device_scope(x):
        forward_kernel[grid](
            x, z, pooled, attention, overlap, dim, maps, cells, *x.stride(),
            **_blocks(maps, cells), DTYPE=TRITON_TYPES[x.dtype],
        )  # fmt: skip
    return pooled, attention, overlap


def diverse_attention_backward(
    grad_pooled: Tensor | None,
    grad_attention: Tensor | None,
    grad_overlap: Tensor | None,
    features: Tensor,
    logits: Tensor,
    needs_features: bool,
    needs_logits: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of features and logits; what ``reidfast::diverse_attention_backward`` runs on CUDA."""
    x, z = features.flatten(2), logits.flatten(2).contiguous()
    (batch, dim, cells), maps = x.shape, z.shape[1]
    for name, grad, shape in (
        ("grad_pooled", grad_pooled, (batch, maps, dim)),
        ("grad_attention", grad_attention, (batch, maps, cells)),
        ("grad_overlap", grad_overlap, (batch,)),
    ):
        if grad is not None and tuple(grad.shape) != shape:
            raise RuntimeError(f"diverse_attention_backward: expected {name} {shape}, got {tuple(grad.shape)}")
    if not served(features, logits):
        return plain_backward(grad_pooled, grad_attention, grad_overlap, features, logits, needs_features, needs_logits)

    grad_x = grad_z = None
    if needs_features:
        grad_x = empty_map(features, features.shape, channel=1, channels_last=is_channels_last(features))
    if needs_logits:
        grad_z = z.new_empty(logits.shape)
    pools = grad_pooled is not None and x.numel() > 0 and z.numel() > 0
    if grad_x is not None and not pools:
        grad_x.zero_()
    if z.numel() == 0:
        return grad_x, grad_z

    blocks, dtype = _blocks(maps, cells), TRITON_TYPES[x.dtype]
    chunk = channels_per_part(batch, dim)
    parts = triton.cdiv(dim, chunk)
    with device_scope(x):
        share = z
        if pools and (needs_features or needs_logits):
            g = grad_pooled.to(x.dtype).contiguous()
            if grad_z is not None:
                share = z.new_empty((batch, parts, maps, cells), dtype=torch.float32)
            out = x if grad_x is None else grad_x.flatten(2)
            grid = (batch, parts, triton.cdiv(cells, int(blocks["BLOCK_L"])))
            backward_map_kernel[grid](
                x, z, g, out, share, dim, maps, cells, *x.stride(), *out.stride(),
                CHUNK=chunk, BLOCK_D=BLOCK_D, NEEDS_X=grad_x is not None, NEEDS_Z=grad_z is not None,
                DTYPE=dtype, **blocks, num_warps=4,
            )  # fmt: skip
        if grad_z is not None:
            ga = z if grad_attention is None else grad_attention.to(x.dtype).contiguous()
            go = z if grad_overlap is None else grad_overlap.to(torch.float32).contiguous()
            backward_logits_kernel[(batch,)](
                z, share, ga, go, grad_z, parts, maps, cells,
                POOLED=pools, ATTENTION=grad_attention is not None, OVERLAP=grad_overlap is not None,
                DTYPE=dtype, **blocks, num_warps=4,
            )  # fmt: skip
    return grad_x, grad_z


def plain_backward(
    grad_pooled: Tensor | None,
    grad_attention: Tensor | None,
    grad_overlap: Tensor | None,
    features: Tensor,
    logits: Tensor,
    needs_features: bool,
    needs_logits: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The same gradients in plain PyTorch, for what the kernels do not take."""
    wide = torch.promote_types(features.dtype, torch.float32)
    x, z = features.flatten(2).to(wide), logits.flatten(2).to(wide)
    a = z.softmax(-1)
    d = torch.zeros_like(a)
    grad_x = grad_z = None
    if needs_features:
        grad_x = empty_map(features, features.shape, channel=1, channels_last=is_channels_last(features)).zero_()
    if grad_pooled is not None:
        d = d + grad_pooled.to(wide) @ x
        if grad_x is not None:
            grad_x.copy_((grad_pooled.to(wide).transpose(1, 2) @ a).view(features.shape))
    if grad_attention is not None:
        d = d + grad_attention.to(wide)
    if needs_logits:
        gradient = a * (d - (a * d).sum(-1, keepdim=True))
        if grad_overlap is not None:
            root = torch.exp(0.5 * z.log_softmax(-1))
            off = root @ root.transpose(1, 2) * (1 - torch.eye(z.shape[1], dtype=wide, device=z.device))
            pull = off @ root * root - a * off.square().sum(-1, keepdim=True)
            gradient = gradient + 2 * grad_overlap.to(wide)[:, None, None] * pull
        grad_z = gradient.to(logits.dtype).view(logits.shape)
    return grad_x, grad_z
