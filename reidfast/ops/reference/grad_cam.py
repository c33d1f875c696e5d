# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Grad-CAM map in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def grad_cam(features: Tensor, weights: Tensor) -> Tensor:
    """Rectified weighted sum over channels; signature of ``reidfast::grad_cam``."""
    wide = torch.promote_types(features.dtype, torch.float32)
    return (features.to(wide) * weights.to(wide)[:, :, None, None]).sum(1).relu().to(features.dtype)
