# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Means of affine patches in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from reidfast.ops.reference.sample_patches import sample_patches


def pool_patches(features: Tensor, theta: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """The mean of every sampled patch; signature of ``reidfast::pool_patches``."""
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return sample_patches(wide, theta, height, width, align_corners).mean((-2, -1)).to(features.dtype)
