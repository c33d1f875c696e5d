# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Momentum update of a memory bank, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reidfast.ops._checks import check_float, check_int64, check_same_device, found
from reidfast.ops._op import Op
from reidfast.ops.reference.memory_update import memory_update_ as _reference


def memory_update_(bank: Tensor, indices: Tensor, values: Tensor, *, momentum: float, normalize: bool = False) -> None:
    """Blend fresh features into rows of a memory bank, in place and in batch order.

        for b = 0, 1, ...:  row = bank[m, indices[b]];  row <- momentum * row + (1 - momentum) * values[m, b]
                            with normalize:             row <- row / ||row||

    momentum is the weight of the OLD value. PAUL's l = 0.1 is momentum 0.9; OIM's m = 0.5 is 0.5; ECN's and SpCL's
    alpha is momentum itself. An index that occurs twice is updated twice, the second time from the result of the first,
    as the loops of those projects do: docs/ops/memory_update.md.

    Args:
        bank: (M, N, d) or (N, d), float32, float64, float16 or bfloat16, rows of adjacent values; changed in place.
        indices: (B,) int64 on bank's device, for all M alike; -1: skip.
        values: (M, B, d) or (B, d) on bank's device, of any of those dtypes. Read as constants.
        momentum: Weight of the old value, 0 to 1.
        normalize: Whether a row is divided by its norm after each write; a zero row stays zero.

    Raises:
        ValueError: Shapes, devices or momentum do not fit; on the CPU also indices outside the bank.
        TypeError: Not floating point, indices not int64.
        RuntimeError: bank requires gradients and gradients are being recorded (call it under ``torch.no_grad()``).

    Notes:
        Half types are blended and normalised in float32 and rounded once per write. Deterministic, on every device.

    Example:
        >>> bank = torch.zeros(3, 2)
        >>> memory_update_(bank, torch.tensor([2, -1]), torch.ones(2, 2), momentum=0.9)
        >>> bank[2]
        tensor([0.1000, 0.1000])
    """
    _OP(bank, indices, values, momentum, normalize)


def _check(bank: Tensor, indices: Tensor, values: Tensor, momentum: float, normalize: bool) -> tuple[Any, ...]:
    check_float("memory_update_", "bank", bank)
    check_float("memory_update_", "values", values)
    check_int64("memory_update_", "indices", indices)
    a, b = bank.shape, values.shape
    if len(a) != len(b) or not 2 <= len(a) <= 3 or a[-1] != b[-1] or (len(a) == 3 and a[0] != b[0]):
        raise ValueError(
            "memory_update_: expected bank (M, N, d) and values (M, B, d) with the same M and d, or (N, d) and (B, d), "
            f"got {tuple(a)} and {tuple(b)}"
        )
    if indices.shape != b[-2:-1]:
        raise ValueError(f"memory_update_: expected indices of shape (B,) with B={b[-2]}, got {tuple(indices.shape)}")
    check_same_device("memory_update_", "values", values, "bank", bank)
    check_same_device("memory_update_", "indices", indices, "bank", bank)
    _check_momentum(momentum)
    if a[-1] > 1 and bank.stride(-1) != 1:
        raise ValueError(
            f"memory_update_: expected a bank whose rows are adjacent in memory, got strides {bank.stride()}; "
            "keep the bank contiguous"
        )
    _check_constant(bank)
    if (bank.dtype == torch.float64) != (values.dtype == torch.float64):
        values = values.to(torch.promote_types(bank.dtype, torch.float32))
    return bank, indices, values, momentum, normalize


def _check_momentum(momentum: float) -> None:
    if not isinstance(momentum, (int, float, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"memory_update_: expected momentum to be a number, got {found(momentum)}")
    if not 0 <= momentum <= 1:
        raise ValueError(f"memory_update_: expected momentum, the weight of the old value, from 0 to 1, got {momentum}")


def _check_constant(bank: Tensor) -> None:
    if bank.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "memory_update_: expected a bank that does not require gradients, got one that does; "
            "call it under torch.no_grad()"
        )


def _fake(bank: Tensor, indices: Tensor, values: Tensor, momentum: float, normalize: bool) -> None:
    return None


def _bind(namespace: Any) -> Callable[..., None]:
    """The op, which is no part of any graph, and which tells autograd that the bank has changed."""
    op = namespace.memory_update_.default

    def native(bank: Tensor, indices: Tensor, values: Tensor, momentum: float, normalize: bool) -> None:
        _check_momentum(momentum)
        _check_constant(bank)
        op(bank, indices, values.detach() if values.requires_grad else values, momentum, normalize)
        if not torch.compiler.is_compiling() and not bank.is_inference():
            torch.autograd.graph.increment_version(bank)

    return native


_OP = Op("memory_update_", reference=_reference, check=_check, fake=_fake, tensors=3, bind=_bind)
