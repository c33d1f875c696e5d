# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Hardest positive and hardest negative of every anchor in a batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from reidfast.ops._checks import check_float, check_same_device, found
from reidfast.ops._op import Op
from reidfast.ops.reference.batch_hard import batch_hard as _reference

_INTEGERS = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8))


class BatchHard(NamedTuple):
    """Distances to the hardest positive and negative of each anchor, and which rows those are."""

    d_ap: Tensor
    d_an: Tensor
    i_ap: Tensor
    i_an: Tensor


def batch_hard(x: Tensor, labels: Tensor) -> BatchHard:
    """Distance to the hardest positive and to the hardest negative of every anchor in a batch.

        d_ap[i] = max over j != i with y_j == y_i of ||x_i - x_j||
        d_an[i] = min over j      with y_j != y_i of ||x_i - x_j||

    The inner maximum and minimum of the batch-hard triplet loss (Hermans, Beyer, Leibe, "In Defense of the Triplet Loss
    for Person Re-Identification", arXiv:1703.07737); margin and reduction are ``reidfast.losses.TripletLoss``'s.
    Derivation: docs/ops/batch_hard.md.

    Args:
        x: Embeddings, (B, D), float32, float64, float16 or bfloat16. Any strides; rows whose D values are adjacent are
            not copied.
        labels: Identity of each row, (B,), integer, any values. Classes may have any sizes.

    Returns:
        BatchHard with d_ap, d_an (B,) in x's dtype, float32 for half types, units of x, and i_ap, i_an (B,) int64.
        Differentiable: d_ap, d_an.

    Raises:
        ValueError: x is not (B, D), labels is not (B,) with the same B, or they live on different devices.
        TypeError: x is not floating point, or labels is not integer.

    Notes:
        An anchor is never its own positive, at whatever distance. Missing positive (negative): distance -inf (+inf),
        index -1, gradient 0. Ties: the lowest index. A NaN distance counts as the hardest and is returned.
        The chosen distances are sums of squared differences, exact for near duplicates; at distance zero the gradient
        is zero. Half types accumulate in float32. Never B x B: beyond the outputs 1 MiB, or 64 rows of B where that is
        more. Deterministic, on the CPU for any number of threads. Double backward raises.

    Example:
        >>> hard = batch_hard(torch.tensor([[0.0], [1.0], [3.0], [4.0]]), torch.tensor([0, 0, 1, 1]))
        >>> hard.d_an, hard.i_an
        (tensor([3., 2., 2., 3.]), tensor([2, 2, 1, 1]))
    """
    return BatchHard(*_OP(x, labels))


def _check(x: Tensor, labels: Tensor) -> tuple[Any, ...]:
    check_float("batch_hard", "x", x)
    if not isinstance(labels, Tensor) or labels.dtype not in _INTEGERS:
        raise TypeError(f"batch_hard: expected labels to be an integer tensor, got {found(labels)}")
    if x.dim() != 2:
        raise ValueError(f"batch_hard: expected x of shape (B, D), got {tuple(x.shape)}")
    if labels.dim() != 1 or labels.shape[0] != x.shape[0]:
        raise ValueError(
            f"batch_hard: expected labels of shape (B,) with B={x.shape[0]} to match x, got {tuple(labels.shape)}"
        )
    check_same_device("batch_hard", "labels", labels, "x", x)
    return x, labels.long()


def _fake(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_ap = x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
    return d_ap, torch.empty_like(d_ap), labels.new_empty(labels.shape), labels.new_empty(labels.shape)


def _backward_fake(
    grad_ap: Tensor | None, grad_an: Tensor | None, x: Tensor, d_ap: Tensor, d_an: Tensor, i_ap: Tensor, i_an: Tensor
) -> Tensor:
    return x.new_empty(x.shape)


_OP = Op(
    "batch_hard",
    reference=_reference,
    check=_check,
    fake=_fake,
    backward_fake=_backward_fake,
    tensors=2,
    gradients=(0,),
    masked=False,
    save=lambda inputs, outputs: ((inputs[0], *outputs), ()),
    outputs=4,
    constant_outputs=(2, 3),
)
