# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Gate of the refining recurrent unit."""

from __future__ import annotations

import torch
from torch import Tensor

from reidfast.ops._backends import Dispatch
from reidfast.ops._checks import check_float, check_same_device
from reidfast.ops._extension import extension
from reidfast.ops.reference.gated_update import gated_update as _reference


def gated_update(channel: Tensor, spatial: Tensor, state: Tensor, x: Tensor) -> Tensor:
    """Blend of a recurrent state and its input by a gate that is an outer product of channel and position.

        z[b,c,y,x] = sigmoid(spatial[b,y,x] * channel[b,c])
        out = (1 - z) * state + z * x

    The update of the refining recurrent unit (Liu et al., "Spatial and Temporal Mutual Promotion for Video-based Person
    Re-identification", AAAI 2019). Derivation of the gradients: docs/ops/gated_update.md.

    Args:
        channel: Channel attention before the sigmoid, (B, C), float32, float64, float16 or bfloat16.
        spatial: Spatial attention, (B, H, W). channel's dtype.
        state: Previous refined map, (B, C, H, W), contiguous or channels_last (other strides are copied).
        x: Map of this step, (B, C, H, W).

    Returns:
        (B, C, H, W) in x's dtype and memory format. Differentiable in all inputs.

    Raises:
        ValueError: Shapes or devices do not fit.
        TypeError: Not floating point, or dtypes differ.

    Notes:
        The gate is never stored, in neither pass; 1 - z is computed without cancellation. Half types compute in float32
        and round once. Deterministic, on the CPU for any number of threads. Double backward raises.

    Example:
        >>> zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        >>> gated_update(torch.zeros(1, 1), torch.ones(1, 1, 1), zero, one)
        tensor([[[[0.5000]]]])
    """
    check_float("gated_update", "channel", channel)
    check_float("gated_update", "spatial", spatial)
    check_float("gated_update", "state", state)
    check_float("gated_update", "x", x)
    if not channel.dtype == spatial.dtype == state.dtype == x.dtype:
        raise TypeError(
            f"gated_update: expected channel, spatial, state and x of one dtype, "
            f"got {channel.dtype}, {spatial.dtype}, {state.dtype} and {x.dtype}"
        )
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
    out: Tensor = _OP.on[x.device.type](channel, spatial, state, x)
    return out


_OP = Dispatch("gated_update", reference=_reference)

if extension is not None:

    def _like(x: Tensor) -> Tensor:
        last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        return torch.empty_like(x, memory_format=torch.channels_last if last else torch.contiguous_format)

    @torch.library.register_fake("reidfast::gated_update")
    def _(channel: Tensor, spatial: Tensor, state: Tensor, x: Tensor) -> Tensor:
        return _like(x)

    @torch.library.register_fake("reidfast::gated_update_backward")
    def _(
        grad: Tensor, channel: Tensor, spatial: Tensor, state: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return channel.new_empty(channel.shape), spatial.new_empty(spatial.shape), _like(x), _like(x)
