# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Matching of queries against a memory bank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from reidfast.ops._memory import as_bank, both_wide, check_logits, check_pair, check_rows
from reidfast.ops._op import Op, refuse_twice
from reidfast.ops.reference.memory_match import memory_match as _reference


class MemoryMatch(NamedTuple):
    """What ``memory_match`` returns."""

    logsumexp: Tensor
    """[M, B] or [B]: log of the sum of exp(logit) over all rows that are not excluded."""
    topk_logits: Tensor
    """[M, B, k] or [B, k]: the k highest logits, best first."""
    topk_indices: Tensor
    """[M, B, k] or [B, k] int64: their rows."""


def memory_match(
    x: Tensor,
    bank: Tensor | numpy.ndarray,
    k: int,
    *,
    scale: float,
    metric: str = "sqeuclidean",
    exclude: Tensor | None = None,
) -> MemoryMatch:
    """Log-sum-exp over a memory bank and its k best rows, for every query, in one pass over the bank.

        l[m, b, n] = -scale * ||x[m, b] - bank[m, n]||^2      metric "sqeuclidean"
        l[m, b, n] =  scale * <x[m, b], bank[m, n]>           metric "dot"
        logsumexp[m, b] = log sum over n != exclude[b] of exp(l[m, b, n])

    Yang et al., "Patch-based Discriminative Feature Learning for Unsupervised Person Re-identification", CVPR 2019
    (with M patches, each with its own bank). Derivation and gradients: docs/ops/memory_match.md.

    Args:
        x: Queries, (M, B, d), or (B, d) for a single bank. float32, float64, float16 or bfloat16.
        bank: Rows, (M, N, d) or (N, d), on x's device, of any of these dtypes; float64 beside another one makes both
            float64. Rows whose d values are adjacent are not copied, whatever their stride. On the CPU also a
            ``numpy.memmap`` or a tensor of ``torch.from_file``: it is read tile by tile, so it may be larger than
            memory.
        k: How many best rows, from 1 to the usable rows.
        scale: Multiplier of the logits, any finite number. No value overflows: exponents are taken relative to the
            running maximum.
        metric: "sqeuclidean" or "dot".
        exclude: (B,) int64, for all M alike: this row is left out of everything for that query; -1: none is.

    Returns:
        MemoryMatch(logsumexp, topk_logits, topk_indices), in float32 for half inputs, else in x's dtype.
        Differentiable: logsumexp and topk_logits, in x, and in bank where it requires gradients.

    Raises:
        ValueError: Shapes, devices, metric or scale do not fit, or k is above the usable rows; on the CPU also exclude
            outside the bank.
        TypeError: Not floating point, exclude not int64, k not an integer.

    Notes:
        Best first, equal logits by lowest row. The k best logits are recomputed from the rows themselves, so that those
        of near duplicates are exact; rows whose logit is NaN rank last and make logsumexp NaN. Where a device cannot
        check (CUDA), missing rows have index -1 and logit -inf.
        Memory beyond the outputs: a few tiles per thread and O(M B (d + k)), whatever N; never (B, N). The gradient of
        a bank is as large as the bank. Deterministic, on the CPU for any number of threads. Double backward raises.
        On CUDA, plain PyTorch serves float64 and k above 128, with a (B, N) array.

    Example:
        >>> bank = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
        >>> found = memory_match(torch.tensor([[0.0, 2.0]]), bank, 2, scale=1.0)
        >>> found.topk_logits, found.topk_indices
        (tensor([[-1., -1.]]), tensor([[0, 2]]))
    """
    return MemoryMatch(*_OP(x, as_bank(bank), k, scale, metric, exclude))


def _check(x: Tensor, bank: Tensor, k: int, scale: float, metric: str, exclude: Tensor | None) -> tuple[Any, ...]:
    check_pair("memory_match", x, bank)
    check_logits("memory_match", k, bank.shape[-2], scale, metric)
    if exclude is not None:
        check_rows("memory_match", "exclude", exclude, x)
    return (*both_wide(x, bank), k, scale, metric, exclude)


def _fake(
    x: Tensor, bank: Tensor, k: int, scale: float, metric: str, exclude: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(bank.dtype, torch.float32)
    shape = (*x.shape[:-1], k)
    return (
        x.new_empty(x.shape[:-1], dtype=wide),
        x.new_empty(shape, dtype=wide),
        x.new_empty(shape, dtype=torch.int64),
    )


def _forward_fake(
    x: Tensor,
    bank: Tensor,
    k: int,
    scale: float,
    metric: str,
    exclude: Tensor | None,
    needs_x: bool,
    needs_bank: bool,
) -> tuple[Tensor | None, ...]:
    logsumexp, topk_logits, topk_indices = _fake(x, bank, k, scale, metric, exclude)
    return (
        logsumexp,
        topk_logits,
        topk_indices,
        torch.empty_like(logsumexp, dtype=torch.float64) if needs_bank else None,
        torch.empty_like(topk_logits, dtype=torch.float64) if needs_bank else None,
        x.new_empty(x.shape, dtype=logsumexp.dtype) if needs_x else None,
    )


def _backward_fake(
    grad_lse: Tensor,
    grad_logits: Tensor,
    x: Tensor,
    bank: Tensor,
    indices: Tensor,
    state: Tensor | None,
    shares: Tensor | None,
    direction: Tensor | None,
    scale: float,
    metric: str,
    exclude: Tensor | None,
    needs_x: bool,
    needs_bank: bool,
) -> tuple[Tensor | None, Tensor | None]:
    return x.new_empty(x.shape) if needs_x else None, bank.new_empty(bank.shape) if needs_bank else None


def _bind(namespace: Any) -> Callable[..., Any]:
    """The op, whose forward op makes what its gradient needs only where one is wanted."""
    plain, forward_op = namespace.memory_match.default, namespace.memory_match_forward.default
    backward_op = namespace.memory_match_backward.default

    class Match(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            x: Tensor,
            bank: Tensor,
            k: int,
            scale: float,
            metric: str,
            exclude: Tensor | None,
            needs_x: bool,
            needs_bank: bool,
        ) -> Any:
            lse, logits, rows, state, shares, direction = forward_op(
                x, bank, k, scale, metric, exclude, needs_x, needs_bank
            )
            ctx.save_for_backward(x, bank, rows, state, shares, direction, exclude)
            ctx.settings = (scale, metric)
            ctx.mark_non_differentiable(rows)
            return lse, logits, rows

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            x, bank, rows, state, shares, direction, exclude = ctx.saved_tensors
            needs, twice = ctx.needs_input_grad, torch.is_grad_enabled()
            with torch.no_grad():
                made = backward_op(
                    grads[0], grads[1], x, bank, rows, state, shares, direction, *ctx.settings, exclude, *needs[:2]
                )
            if twice:
                made = refuse_twice("memory_match", made, grads[0], grads[1], x, bank)
            return (*made, None, None, None, None, None, None)

    def native(x: Tensor, bank: Tensor, k: int, scale: float, metric: str, exclude: Tensor | None) -> Any:
        if torch.is_grad_enabled() and (x.requires_grad or bank.requires_grad):
            return Match.apply(x, bank, k, scale, metric, exclude, x.requires_grad, bank.requires_grad)
        return plain(x, bank, k, scale, metric, exclude)

    return native


_OP = Op(
    "memory_match",
    reference=_reference,
    check=_check,
    fake=_fake,
    backward_fake=_backward_fake,
    forward_fake=_forward_fake,
    tensors=2,
    gradients=(0, 1),
    lower=(0,),
    bind=_bind,
    triton="memory",
)
