# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The loss of a memory bank: all rows against the k best, or against one target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reidfast.ops._memory import both_wide, check_logits, check_pair, check_rows
from reidfast.ops._op import Op, refuse_twice
from reidfast.ops.reference.memory_loss import memory_loss as _reference


def memory_loss(
    x: Tensor,
    bank: Tensor,
    k: int | None = None,
    *,
    targets: Tensor | None = None,
    scale: float,
    metric: str = "sqeuclidean",
    exclude: Tensor | None = None,
) -> Tensor:
    """Log-sum-exp over a memory bank minus that over the k best rows, or minus the logit of a target row.

        l[m, b, n] = -scale * ||x[m, b] - bank[m, n]||^2 ("sqeuclidean")  or  scale * <x[m, b], bank[m, n]> ("dot")
        loss[m, b] = log sum over n of exp(l[m, b, n]) - log sum over n in K[m, b] of exp(l[m, b, n])
        K[m, b]    = the k highest logits, or {targets[b]};   n = exclude[b] is in neither sum

    With k: patch-based discriminative feature loss (PEDAL) of Yang et al., "Patch-based Discriminative Feature Learning
    for Unsupervised Person Re-identification", CVPR 2019. With targets: the non-parametric softmax of OIM (Xiao et al.,
    CVPR 2017), ECN, SpCL, cluster-contrast and MoCo: metric "dot" and scale = 1/temperature.
    Loss and gradient come from one read of the bank: docs/ops/memory_loss.md.

    Args:
        x: Queries, (M, B, d), or (B, d) for a single bank. float32, float64, float16 or bfloat16.
        bank: Rows, (M, N, d) or (N, d), on x's device, of any of these dtypes; float64 beside another one makes both
            float64. Rows whose d values are adjacent are not copied, whatever their stride.
        k: How many best rows, from 1 to the usable rows. Exactly one of k and targets is given.
        targets: (B,) int64, for all M alike: the row that each query should match.
        scale: Multiplier of the logits, any finite number.
        metric: "sqeuclidean" or "dot".
        exclude: (B,) int64, for all M alike: this row is left out of everything for that query; -1: none is.

    Returns:
        (M, B) or (B,), at least 0, in float32 for half inputs, else in x's dtype. Differentiable in x and, with
        targets, in bank. With k the bank is a constant: the selection passes no gradient.

    Raises:
        ValueError: Shapes, devices, metric or scale do not fit; both or neither of k and targets; k above the usable
            rows; on the CPU also targets or exclude outside the bank, and a target that is excluded.
        TypeError: Not floating point, targets or exclude not int64, k not an integer.

    Notes:
        Computed as log(1 + rest/best), the two sums kept apart all the way, each relative to its own maximum: no
        cancellation where the best rows hold all the mass, no overflow for any scale. The logits of the best rows are
        recomputed from the rows themselves: near duplicates stay exact. Equal logits: lowest row. k equal to the usable
        rows: loss 0, gradient 0. NaN in a row reaches every query of its part, NaN in a query that query.
        With k the bank may be updated between forward and backward: the gradient is ready when the loss is.
        Memory beyond the outputs: a few tiles per thread and O(M B (d + k)), whatever N; never (B, N).
        Deterministic, on the CPU for any number of threads. Double backward raises. On CUDA, plain PyTorch serves
        float64 and k above 128, with a (B, N) array.

    Example:
        >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> memory_loss(torch.tensor([[1.0, 0.0]]), bank, 1, scale=1.0)
        tensor([0.1429])
    """
    loss: Tensor = _OP(x, bank, k, targets, scale, metric, exclude)
    return loss


def _check(
    x: Tensor, bank: Tensor, k: int | None, targets: Tensor | None, scale: float, metric: str, exclude: Tensor | None
) -> tuple[Any, ...]:
    check_pair("memory_loss", x, bank)
    check_logits("memory_loss", k, bank.shape[-2], scale, metric)
    if (k is None) == (targets is None):
        raise ValueError(
            f"memory_loss: expected exactly one of k and targets, got {'neither' if k is None else f'both (k={k})'}"
        )
    if targets is not None:
        check_rows("memory_loss", "targets", targets, x)
    if exclude is not None:
        check_rows("memory_loss", "exclude", exclude, x)
    return (*both_wide(x, bank), k, targets, scale, metric, exclude)


def _fake(
    x: Tensor, bank: Tensor, k: int | None, targets: Tensor | None, scale: float, metric: str, exclude: Tensor | None
) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.promote_types(bank.dtype, torch.float32))


def _forward_fake(
    x: Tensor,
    bank: Tensor,
    k: int | None,
    targets: Tensor | None,
    scale: float,
    metric: str,
    exclude: Tensor | None,
    needs_x: bool,
    needs_bank: bool,
) -> tuple[Tensor | None, ...]:
    loss = _fake(x, bank, k, targets, scale, metric, exclude)
    state = torch.empty_like(loss, dtype=torch.float64) if needs_bank else None
    return loss, state, x.new_empty(x.shape, dtype=loss.dtype) if needs_x else None


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    bank: Tensor | None,
    loss: Tensor | None,
    state: Tensor | None,
    direction: Tensor | None,
    targets: Tensor | None,
    scale: float,
    metric: str,
    exclude: Tensor | None,
    needs_x: bool,
    needs_bank: bool,
) -> tuple[Tensor | None, Tensor | None]:
    grad_bank = bank.new_empty(bank.shape) if needs_bank and bank is not None else None
    return x.new_empty(x.shape) if needs_x else None, grad_bank


def _bind(namespace: Any) -> Callable[..., Any]:
    """The op, whose gradient with respect to x is ready with the loss."""
    plain, forward_op = namespace.memory_loss.default, namespace.memory_loss_forward.default
    backward_op = namespace.memory_loss_backward.default

    class Loss(torch.autograd.Function):
        # With k nothing of the bank is needed later: it may be updated between forward and backward.
        @staticmethod
        def forward(
            ctx: Any,
            x: Tensor,
            bank: Tensor,
            k: int | None,
            targets: Tensor | None,
            scale: float,
            metric: str,
            exclude: Tensor | None,
            needs_x: bool,
            needs_bank: bool,
        ) -> Any:
            loss, state, direction = forward_op(x, bank, k, targets, scale, metric, exclude, needs_x, needs_bank)
            ctx.with_bank = needs_bank
            ctx.settings = (scale, metric)
            if needs_bank:
                ctx.save_for_backward(x, direction, bank, loss, state, targets, exclude)
            else:
                ctx.save_for_backward(x, direction)
            return loss

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            (grad,) = grads
            saved, needs, twice = ctx.saved_tensors, ctx.needs_input_grad, torch.is_grad_enabled()
            with torch.no_grad():
                if ctx.with_bank:
                    x, direction, bank, loss, state, targets, exclude = saved
                    made = backward_op(
                        grad, x, bank, loss, state, direction, targets, *ctx.settings, exclude, *needs[:2]
                    )
                else:
                    x, direction = saved
                    made = backward_op(grad, x, None, None, None, direction, None, *ctx.settings, None, True, False)
            if twice:
                made = refuse_twice("memory_loss", made, grad, *saved)
            return (*made, None, None, None, None, None, None, None)

    def native(
        x: Tensor,
        bank: Tensor,
        k: int | None,
        targets: Tensor | None,
        scale: float,
        metric: str,
        exclude: Tensor | None,
    ) -> Any:
        if torch.is_grad_enabled():
            needs_bank = targets is not None and bank.requires_grad
            if bank.requires_grad and not needs_bank:
                bank = bank.detach()  # with k the bank is a constant of the loss
            if x.requires_grad or needs_bank:
                return Loss.apply(x, bank, k, targets, scale, metric, exclude, x.requires_grad, needs_bank)
        return plain(x, bank, k, targets, scale, metric, exclude)

    return native


_OP = Op(
    "memory_loss",
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
