# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Gate of the refining recurrent unit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reidfast.ops._checks import check_float, check_same_device, promote
from reidfast.ops._op import Op
from reidfast.ops.reference.gated_update import gated_update as _reference


def gated_update(channel: Tensor, spatial: Tensor, state: Tensor, x: Tensor) -> Tensor:
    """Blend of a recurrent state and its input by a gate that is an outer product of channel and position.

        z[b,c,y,x] = sigmoid(spatial[b,y,x] * channel[b,c])
        out = (1 - z) * state + z * x

    The update of the refining recurrent unit (Liu et al., "Spatial and Temporal Mutual Promotion for Video-based Person
    Re-identification", AAAI 2019). Derivation of the gradients: docs/ops/gated_update.md.

    Args:
        channel: Channel attention before the sigmoid, (B, C), float32, float64, float16 or bfloat16.
        spatial: Spatial attention, (B, H, W). Inputs of several dtypes are brought to the widest.
        state: Previous refined map, (B, C, H, W), contiguous or channels_last (other strides are copied).
        x: Map of this step, (B, C, H, W).

    Returns:
        (B, C, H, W) in the widest dtype and x's memory format. Differentiable in all inputs.

    Raises:
        ValueError: Shapes or devices do not fit.
        TypeError: Not floating point.

    Notes:
        The gate is never stored, in neither pass; 1 - z is computed without cancellation. Half types compute in float32
        and round once. Deterministic, on the CPU for any number of threads. Double backward raises.

    Example:
        >>> zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        >>> gated_update(torch.zeros(1, 1), torch.ones(1, 1, 1), zero, one)
        tensor([[[[0.5000]]]])
    """
    out: Tensor = _OP(channel, spatial, state, x)
    return out


def _check(channel: Tensor, spatial: Tensor, state: Tensor, x: Tensor) -> tuple[Any, ...]:
    check_float("gated_update", "channel", channel)
    check_float("gated_update", "spatial", spatial)
    check_float("gated_update", "state", state)
    check_float("gated_update", "x", x)
    shape = x.shape
    if (
        len(shape) != 4
        or state.shape != shape
        or channel.shape != shape[:2]
        or spatial.shape != (shape[0], shape[2], shape[3])
    ):
        raise ValueError(
            f"gated_update: expected channel (B, C), spatial (B, H, W), state and x (B, C, H, W), got "
            f"{tuple(channel.shape)}, {tuple(spatial.shape)}, {tuple(state.shape)} and {tuple(shape)}"
        )
    check_same_device("gated_update", "channel", channel, "x", x)
    check_same_device("gated_update", "spatial", spatial, "x", x)
    check_same_device("gated_update", "state", state, "x", x)
    return promote(channel, spatial, state, x)


def _like(x: Tensor) -> Tensor:
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.empty_like(x, memory_format=torch.channels_last if last else torch.contiguous_format)


def _fake(channel: Tensor, spatial: Tensor, state: Tensor, x: Tensor) -> Tensor:
    return _like(x)


def _backward_fake(
    grad: Tensor, channel: Tensor, spatial: Tensor, state: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return channel.new_empty(channel.shape), spatial.new_empty(spatial.shape), _like(x), _like(x)


_OP = Op(
    "gated_update",
    reference=_reference,
    check=_check,
    fake=_fake,
    backward_fake=_backward_fake,
    tensors=4,
    gradients=(0, 1, 2, 3),
    masked=False,
)
