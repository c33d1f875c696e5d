# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Grad-CAM attention maps."""

from __future__ import annotations

import torch
from torch import Tensor

from reidfast.ops._backends import Dispatch
from reidfast.ops._checks import check_float, check_same_device
from reidfast.ops._extension import extension
from reidfast.ops.reference.grad_cam import grad_cam as _reference


def grad_cam(features: Tensor, weights: Tensor) -> Tensor:
    """Grad-CAM map: the rectified, weighted sum of the channels of a feature map.

        out[b,y,x] = relu(sum_c weights[b,c] * features[b,c,y,x])

    With weights = mean over positions of d logit / d features this is Grad-CAM (Selvaraju et al., "Grad-CAM: Visual
    Explanations from Deep Networks via Gradient-based Localization", ICCV 2017), the attention of the consistent
    attentive Siamese network (Zheng et al., CVPR 2019). Derivation of both orders: docs/ops/grad_cam.md.

    Args:
        features: Feature map, (B, C, H, W), float32, float64, float16 or bfloat16, contiguous or channels_last (other
            strides are copied).
        weights: Weight of each channel, (B, C), features' dtype.

    Returns:
        (B, H, W) in features' dtype. Differentiable in both, any number of times.

    Raises:
        ValueError: Shapes or devices do not fit.
        TypeError: Not floating point, or dtypes differ.

    Notes:
        Where the sum is not positive the gradient is 0. Half types accumulate in float32. One read of the features in
        each pass and no product of their size. Deterministic, on the CPU for any number of threads.

    Example:
        >>> grad_cam(torch.tensor([[[[1.0, 2.0]], [[3.0, 1.0]]]]), torch.tensor([[1.0, -1.0]]))
        tensor([[[0., 1.]]])
    """
    check_float("grad_cam", "features", features)
    check_float("grad_cam", "weights", weights)
    if features.dtype != weights.dtype:
        raise TypeError(f"grad_cam: expected weights of dtype {features.dtype} to match features, got {weights.dtype}")
    if features.dim() != 4 or weights.shape != features.shape[:2]:
        raise ValueError(
            f"grad_cam: expected features (B, C, H, W) and weights (B, C), "
            f"got {tuple(features.shape)} and {tuple(weights.shape)}"
        )
    check_same_device("grad_cam", "weights", weights, "features", features)
    out: Tensor = _OP.on[features.device.type](features, weights)
    return out


_OP = Dispatch("grad_cam", reference=_reference)

if extension is not None:

    @torch.library.register_fake("reidfast::grad_cam")
    def _(features: Tensor, weights: Tensor) -> Tensor:
        batch, _, height, width = features.shape
        return features.new_empty((batch, height, width))

    @torch.library.register_fake("reidfast::grad_cam_backward")
    def _(
        grad: Tensor, out: Tensor, features: Tensor, weights: Tensor, needs: list[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        last = not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if last else torch.contiguous_format
        return (
            torch.empty_like(features, memory_format=memory_format) if needs[0] else None,
            weights.new_empty(weights.shape) if needs[1] else None,
        )
