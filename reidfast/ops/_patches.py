# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Checks that ``sample_patches`` and ``pool_patches`` share."""

from __future__ import annotations

import torch
from torch import Tensor

from reidfast.ops._checks import check_float, check_same_device


def check_patches(op: str, features: Tensor, theta: Tensor, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Raise unless the arguments fit; the patch size (h, w)."""
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
    if theta.dtype != features.dtype and (theta.dtype != torch.float32 or features.dtype == torch.float64):
        raise TypeError(
            f"{op}: expected theta of dtype {features.dtype} (or float32 beside half features), got {theta.dtype}"
        )
    if theta.device != features.device:
        check_same_device(op, "theta", theta, "features", features)
    if size is None:
        height, width = features.shape[2], features.shape[3]
        if height < 1 or width < 1:
            raise ValueError(f"{op}: expected a map of at least one cell, got features {tuple(features.shape)}")
        return height, width
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(isinstance(n, (int, torch.SymInt)) for n in pair):
        raise TypeError(f"{op}: expected size to be an int, (h, w) or None, got {size!r}")
    height, width = pair
    if height < 1 or width < 1:
        raise ValueError(f"{op}: expected size of at least 1 x 1, got {height} x {width}")
    if features.shape[2] < 1 or features.shape[3] < 1:
        raise ValueError(f"{op}: expected a map of at least one cell, got features {tuple(features.shape)}")
    return height, width
