# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The loss of a memory bank: all rows against the k best, or against one target."""

from __future__ import annotations

import torch
from torch import Tensor

from reidfast.ops._backends import Dispatch
from reidfast.ops._extension import extension
from reidfast.ops._memory import check_logits, check_pair, check_rows, has_kernel, triton_reason
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
        bank: Rows, (M, N, d) or (N, d), on x's device, of x's dtype; half and float32 may be mixed. Rows whose d values
            are adjacent are not copied, whatever their stride.
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
        TypeError: Not floating point, float64 mixed with another dtype, targets or exclude not int64, k not an integer.

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
    return _OP.on[x.device.type](x, bank, k, targets, scale, metric, exclude)


def _triton(
    x: Tensor, bank: Tensor, k: int | None, targets: Tensor | None, scale: float, metric: str, exclude: Tensor | None
) -> Tensor:
    """The compiled op, whose CUDA kernels are Triton's, for what these take."""
    run = torch.ops.reidfast.memory_loss.default if has_kernel(x, k) else _reference
    return run(x, bank, k, targets, scale, metric, exclude)  # type: ignore[no-any-return]


_OP = Dispatch(
    "memory_loss",
    reference=_reference,
    triton=None if triton_reason else _triton,
    triton_reason=triton_reason,
    native_cuda=False,
)

if extension is not None:

    @torch.library.register_fake("reidfast::memory_loss")
    def _(
        x: Tensor,
        bank: Tensor,
        k: int | None,
        targets: Tensor | None,
        scale: float,
        metric: str,
        exclude: Tensor | None,
    ) -> Tensor:
        return x.new_empty(x.shape[:-1], dtype=torch.promote_types(bank.dtype, torch.float32))

    @torch.library.register_fake("reidfast::memory_loss_forward")
    def _(
        x: Tensor,
        bank: Tensor,
        k: int | None,
        targets: Tensor | None,
        scale: float,
        metric: str,
        exclude: Tensor | None,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        wide = torch.promote_types(bank.dtype, torch.float32)
        state = x.new_empty(x.shape[:-1], dtype=torch.float64) if needs[1] else None
        return x.new_empty(x.shape[:-1], dtype=wide), state, x.new_empty(x.shape, dtype=wide) if needs[0] else None

    @torch.library.register_fake("reidfast::memory_loss_backward")
    def _(
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
        needs: list[bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        return x.new_empty(x.shape) if needs[0] else None, bank.new_empty(bank.shape) if needs[
            1
        ] and bank is not None else None
