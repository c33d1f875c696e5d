# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Grad-CAM attention maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reidfast.ops._checks import check_float, check_same_device, promote
from reidfast.ops._op import Op
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
        TypeError: Not floating point.

    Notes:
        Where the sum is not positive the gradient is 0. Half types accumulate in float32. One read of the features in
        each pass and no product of their size. Deterministic, on the CPU for any number of threads.

    Example:
        >>> grad_cam(torch.tensor([[[[1.0, 2.0]], [[3.0, 1.0]]]]), torch.tensor([[1.0, -1.0]]))
        tensor([[[0., 1.]]])
    """
    out: Tensor = _OP(features, weights)
    return out


def _check(features: Tensor, weights: Tensor) -> tuple[Any, ...]:
    check_float("grad_cam", "features", features)
    check_float("grad_cam", "weights", weights)
    if features.dim() != 4 or weights.shape != features.shape[:2]:
        raise ValueError(
            f"grad_cam: expected features (B, C, H, W) and weights (B, C), "
            f"got {tuple(features.shape)} and {tuple(weights.shape)}"
        )
    check_same_device("grad_cam", "weights", weights, "features", features)
    return promote(features, weights)


def _fake(features: Tensor, weights: Tensor) -> Tensor:
    batch, _, height, width = features.shape
    return features.new_empty((batch, height, width))


def _backward_fake(
    grad: Tensor, out: Tensor, features: Tensor, weights: Tensor, needs_features: bool, needs_weights: bool
) -> tuple[Tensor | None, Tensor | None]:
    last = not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if last else torch.contiguous_format
    return (
        torch.empty_like(features, memory_format=memory_format) if needs_features else None,
        weights.new_empty(weights.shape) if needs_weights else None,
    )


def _bind(namespace: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The op with a gradient that can be differentiated any number of times."""
    forward_op, backward_op = namespace.grad_cam.default, namespace.grad_cam_backward.default

    class GradCamBackward(torch.autograd.Function):
        # With m = 1[out > 0] g the first pass gave gF = w (x) m and gw = F m; both are linear in w, F and g, so their
        # derivatives are products of the same kind. Written in torch ops, which record in their turn.
        @staticmethod
        def forward(ctx: Any, grad: Tensor, out: Tensor, features: Tensor, weights: Tensor) -> Any:
            ctx.save_for_backward(grad, out, features, weights)
            ctx.set_materialize_grads(False)
            return tuple(backward_op(grad, out, features, weights, True, True))

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            v_features, v_weights = grads
            grad, out, features, weights = ctx.saved_tensors
            cut = out.detach() <= 0
            m = grad.masked_fill(cut, 0).flatten(1).unsqueeze(1)  # [B, 1, L]
            to_map = to_features = to_weights = None
            if v_features is not None:
                v = v_features.flatten(2)
                to_map = torch.bmm(weights.unsqueeze(1), v)
                to_weights = torch.bmm(v, m.transpose(1, 2)).squeeze(2)
            if v_weights is not None:
                v = v_weights.unsqueeze(1)
                part = torch.bmm(v, features.flatten(2))
                to_map = part if to_map is None else to_map + part
                to_features = torch.bmm(v.transpose(1, 2), m).reshape(features.shape)
            if to_map is not None:
                to_map = to_map.reshape(grad.shape).masked_fill(cut, 0)
            return to_map, None, to_features, to_weights

    class GradCam(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, features: Tensor, weights: Tensor) -> Tensor:
            out: Tensor = forward_op(features, weights)
            ctx.save_for_backward(out, features, weights)
            return out

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            (grad,) = grads
            out, features, weights = ctx.saved_tensors
            needs = ctx.needs_input_grad
            if not torch.is_grad_enabled():
                return backward_op(grad, out, features, weights, needs[0], needs[1])
            made = GradCamBackward.apply(grad, out, features, weights)  # both: a node has no absent output
            return tuple(g if needed else None for g, needed in zip(made, needs, strict=True))

    def native(features: Tensor, weights: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (features.requires_grad or weights.requires_grad):
            return GradCam.apply(features, weights)  # type: ignore[no-any-return]
        return forward_op(features, weights)  # type: ignore[no-any-return]

    return native


_OP = Op(
    "grad_cam",
    reference=_reference,
    check=_check,
    fake=_fake,
    backward_fake=_backward_fake,
    tensors=2,
    gradients=(0, 1),
    bind=_bind,
)
