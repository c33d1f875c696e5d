# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What ``sample_patches`` and ``pool_patches`` share: checks, sizes, fakes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reidfast.ops._checks import beside, check_float, check_same_device
from reidfast.ops._layout import empty_map, is_channels_last


def check_patches(
    op: str, features: Tensor, theta: Tensor, height: int, width: int, align_corners: bool
) -> tuple[Any, ...]:
    """Raise unless the arguments fit; the arguments with dtypes that the kernels take."""
    check_float(op, "features", features)
    check_float(op, "theta", theta)
    if features.dim() != 4 or theta.dim() != 4 or theta.shape[2] != 2 or theta.shape[3] != 3:
        raise ValueError(
            f"{op}: expected features (B, C, H, W) and theta (B, M, 2, 3), "
            f"got {tuple(features.shape)} and {tuple(theta.shape)}"
        )
    if theta.shape[0] != features.shape[0]:
        raise ValueError(
            f"{op}: expected theta (B, M, 2, 3) with B={features.shape[0]} as in features, got {tuple(theta.shape)}"
        )
    check_same_device(op, "theta", theta, "features", features)
    if features.shape[2] < 1 or features.shape[3] < 1:
        raise ValueError(f"{op}: expected a map of at least one cell, got features {tuple(features.shape)}")
    if height < 1 or width < 1:
        raise ValueError(f"{op}: expected size of at least 1 x 1, got {height} x {width}")
    return (*beside(features, theta), height, width, align_corners)


def patch_size(op: str, features: Tensor, theta: Tensor, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of a patch: ``size``, twice where it is one number, or the map's."""
    if type(size) is int:
        return size, size
    if size is None:
        if not isinstance(features, Tensor) or features.dim() != 4:
            check_patches(op, features, theta, 1, 1, True)
        return features.shape[2], features.shape[3]
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or any(isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)) for n in pair):
        raise TypeError(f"{op}: expected size to be an int, (h, w) or None, got {size!r}")
    return pair


def backward_fake(
    grad: Tensor,
    features: Tensor,
    theta: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    needs_features: bool,
    needs_theta: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the map, in its layout, and of theta."""
    last = is_channels_last(features)
    grad_features = empty_map(features, features.shape, channel=1, channels_last=last) if needs_features else None
    return grad_features, theta.new_empty(theta.shape) if needs_theta else None
