# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Affine patch sampling in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


def sample_patches(features: Tensor, theta: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """All patches of every map, one ``grid_sample`` per patch; signature of ``reidfast::sample_patches``."""
    wide = torch.promote_types(features.dtype, torch.float32)
    x, shape = features.to(wide), [*features.shape[:2], height, width]
    if 0 in features.shape or 0 in theta.shape:
        return features.new_zeros((len(features), theta.shape[1], *shape[1:]))
    patches = [
        grid_sample(x, affine_grid(t, shape, align_corners=align_corners), align_corners=align_corners)
        for t in theta.to(wide).unbind(1)
    ]
    return torch.stack(patches, 1).to(features.dtype)
