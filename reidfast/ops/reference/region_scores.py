# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Mean attention inside boxes in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def _inside(low: Tensor, high: Tensor, size: int) -> Tensor:
    centres = torch.arange(size, device=low.device) + 0.5
    return (low[:, None] <= centres) & (centres <= high[:, None])  # [P, size]


def _holds(position: Tensor, size: int) -> Tensor:
    cell = position.floor().clamp(0, size - 1)
    return cell[:, None] == torch.arange(size, device=position.device)  # [P, size]; NaN: none


def region_scores(attention: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
    """Mean of the cells of each box; signature of ``reidfast::region_scores``."""
    height, width = attention.shape[1:]
    outside = image_index.new_zeros(()) if torch.compiler.is_compiling() else image_index
    if attention.device.type == "cpu" and bool(((outside < 0) | (outside >= max(1, len(attention)))).any()):
        raise ValueError(
            f"region_scores: expected image_index in [0, B) with B={len(attention)}, "
            f"got {image_index.min()} to {image_index.max()}"
        )
    wide = torch.promote_types(attention.dtype, torch.float32)
    x1, y1, x2, y2 = boxes.double().unbind(1)
    cells = _inside(y1, y2, height)[:, :, None] & _inside(x1, x2, width)[:, None]
    centre = _holds(0.5 * y1 + 0.5 * y2, height)[:, :, None] & _holds(0.5 * x1 + 0.5 * x2, width)[:, None]
    cells = torch.where(cells.any((1, 2), keepdim=True), cells, centre & ~boxes.isnan().any(1)[:, None, None])
    total = torch.where(cells, attention.to(wide)[image_index], 0).sum((1, 2))
    return (total / cells.sum((1, 2))).to(attention.dtype)  # no cell, a NaN in the box: 0 / 0
