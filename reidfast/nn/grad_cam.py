# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Grad-CAM attention that can be trained: maps with the graph of their own derivation, by autograd or written out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from reidfast import ops

__all__ = [
    "GradCAM",
    "closed_form_reason",
    "frozen_layers",
    "frozen_mode",
    "grad_cam_from_pooled",
    "grad_cam_from_score",
]

Back = Callable[[Tensor], Tensor]


def grad_cam_from_score(score: Tensor, features: Tensor, *, detach_weights: bool = False) -> Tensor:
    """Grad-CAM of a score by autograd: ``M = relu(sum_c a_c F_c)`` with ``a_c`` = mean over cells of d score / d F_c.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
    The derivative is taken between the map and the score only, never through what made the map, and with its own graph,
    so that a loss on M reaches the features both directly and through a.

    Args:
        score: One number per image, (B,), made from ``features`` by operations that do not mix images (batch norms with
            constant statistics, see `frozen_mode`), with grad mode on.
        features: The map, (B, C, H, W), which must require grad.
        detach_weights: Treat a as constants: no second order, cheaper.

    Returns:
        (B, H, W), differentiable.

    Raises:
        ValueError: Shapes that do not fit, or a map that does not require grad.
    """
    if features.dim() != 4 or score.shape != features.shape[:1]:
        raise ValueError(
            f"grad_cam_from_score: expected features (B, C, H, W) and a score (B,), "
            f"got {tuple(features.shape)} and {tuple(score.shape)}"
        )
    if not features.requires_grad:
        raise ValueError(
            "grad_cam_from_score: expected features that require grad; call requires_grad_() before the score is made"
        )
    (gradient,) = torch.autograd.grad(score.sum(), features, create_graph=not detach_weights, retain_graph=True)
    weights = gradient.mean((2, 3))
    return ops.grad_cam(features, weights.detach() if detach_weights else weights)


def grad_cam_from_pooled(features: Tensor, gradient: Tensor, *, detach_weights: bool = False) -> Tensor:
    """Grad-CAM where the score sees the map through averages only: then no gradient of the map's size is needed.

    Let p_1 .. p_P be averages over regions of the map (P = 1: its mean; P stripes of PCB, overlapping or not). As the
    weights of each average sum to one, the mean over the cells of d score / d F is

        a = (1 / HW) sum_p d score / d p_p

    Args:
        features: The map, (B, C, H, W).
        gradient: d score / d pooled, (B, C) or (B, C, P); `frozen_layers` gives it in closed form.
        detach_weights: Treat a as constants.

    Returns:
        (B, H, W), equal to `grad_cam_from_score` in value and in derivatives of both orders.
    """
    if features.dim() != 4 or gradient.shape[:2] != features.shape[:2] or gradient.dim() not in (2, 3):
        raise ValueError(
            f"grad_cam_from_pooled: expected features (B, C, H, W) and a gradient (B, C) or (B, C, P), "
            f"got {tuple(features.shape)} and {tuple(gradient.shape)}"
        )
    if gradient.dim() == 3:
        gradient = gradient.sum(2)
    weights = gradient / (features.shape[2] * features.shape[3])
    return ops.grad_cam(features, weights.detach() if detach_weights else weights)


class GradCAM(nn.Module):
    """Grad-CAM of a class over any head: where in a feature map the head sees the class. See `grad_cam_from_score`.

    The head runs with the statistics that it has (`frozen_mode`), so the images of a batch do not mix.

    Args:
        head: What turns a map (B, C, H, W) into logits (B, classes).
        detach_weights: Treat the channels' weights as constants: for looking, not for training.

    Example:
        >>> head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        >>> GradCAM(head)(torch.randn(2, 8, 6, 3), torch.tensor([4, 0])).shape
        torch.Size([2, 6, 3])
    """

    def __init__(self, head: nn.Module, *, detach_weights: bool = False) -> None:
        super().__init__()
        self.head, self.detach_weights = head, detach_weights

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Maps of one class an image.

        Args:
            features: The map, (B, C, H, W); it need not require grad.
            labels: The class of each image, (B,) int64; None: the head's own choice.

        Returns:
            (B, H, W); under ``torch.no_grad()`` without a graph.

        Raises:
            ValueError: The head does not give (B, classes).
        """
        keep = torch.is_grad_enabled()
        with torch.enable_grad(), frozen_mode(self.head):
            cells = features if keep and features.requires_grad else features.detach().requires_grad_()
            logits = self.head(cells)
            if logits.dim() != 2 or len(logits) != len(features):
                raise ValueError(f"GradCAM: expected logits (B, classes) from the head, got {tuple(logits.shape)}")
            chosen = logits.argmax(1) if labels is None else labels
            score = logits.gather(1, chosen.unsqueeze(1)).squeeze(1)
            maps = grad_cam_from_score(score, cells, detach_weights=self.detach_weights or not keep)
        return maps if keep else maps.detach()


def frozen_layers(layers: Iterable[nn.Module], rows: Tensor) -> tuple[Tensor, Back]:
    """Layers with constant batch-norm statistics and no dropout, and their transposed derivative written out.

    For linear layers, 1x1 convolutions, batch norms (running statistics) and ReLUs the derivative is a product of
    matrices and masks. The masks are locally constant, so the derivative depends on ``rows`` nowhere but at the kinks,
    and on the parameters by plain products: its own gradient needs no double backward.

    Args:
        layers: Modules, nested in ``nn.Sequential`` or not.
        rows: Inputs (N, C).

    Returns:
        ``(outputs, back)``: outputs (N, D); ``back(v)`` is d sum(v * outputs) / d rows, (N, C), for v (N, D), and is
        differentiable with respect to v and the parameters.

    Raises:
        NotImplementedError: A layer of another kind; `closed_form_reason` tells without raising.
    """
    backs: list[Back] = []
    for layer in _flat(layers):
        if isinstance(layer, nn.Linear | nn.Conv2d) and _refusal(layer) is None:
            weight = layer.weight.flatten(1)
            rows = functional.linear(rows, weight, layer.bias)
            backs.append(partial(torch.matmul, other=weight))
        elif isinstance(layer, _BatchNorm) and _refusal(layer) is None:
            mean, variance = layer.running_mean, layer.running_var
            if mean is None or variance is None:  # _refusal has said so; this tells mypy
                raise NotImplementedError("frozen_layers: expected running statistics")
            scale = (variance + layer.eps).rsqrt()
            if layer.weight is not None:
                scale = scale * layer.weight
            rows = (rows - mean) * scale
            if layer.bias is not None:
                rows = rows + layer.bias
            backs.append(partial(torch.mul, other=scale))
        elif isinstance(layer, nn.ReLU):
            rows = rows.relu()
            backs.append(partial(torch.mul, other=rows > 0))
        elif not isinstance(layer, _NOTHING):
            raise NotImplementedError(f"frozen_layers: {_refusal(layer)}; use grad_cam_from_score")

    def back(v: Tensor) -> Tensor:
        for step in reversed(backs):
            v = step(v)
        return v

    return rows, back


def closed_form_reason(layers: Iterable[nn.Module]) -> str | None:
    """Why `frozen_layers` cannot serve these layers; None where it can."""
    return next((reason for layer in _flat(layers) if (reason := _refusal(layer))), None)


_NOTHING = (nn.Dropout, nn.Identity, nn.Flatten)


def _refusal(layer: nn.Module) -> str | None:
    name = type(layer).__name__
    if isinstance(layer, nn.Conv2d):
        plain = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1 and not any(layer.padding)
        return None if plain else f"expected 1x1 convolutions, got kernel {layer.kernel_size}"
    if isinstance(layer, _BatchNorm):
        return None if layer.running_mean is not None else f"expected running statistics, got a {name} without"
    if isinstance(layer, (nn.Linear, nn.ReLU, *_NOTHING)):
        return None
    return f"expected linear layers, 1x1 convolutions, batch norms, ReLU, dropout, got {name}"


def _flat(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            yield from _flat(layer)
        else:
            yield layer


@contextmanager
def frozen_mode(*modules: nn.Module, only: tuple[type[nn.Module], ...] = (nn.Module,)) -> Iterator[None]:
    """Evaluation mode for a while: constant batch-norm statistics, no dropout; afterwards every module as it was.

    Args:
        modules: With all that is inside them.
        only: Kinds of modules to change; the default is every one.
    """
    changed = [m for top in modules for m in top.modules() if m.training and isinstance(m, only)]
    for module in changed:
        module.training = False
    try:
        yield
    finally:
        for module in changed:
            module.training = True
