# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Attention over a region should lie on the person."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidfast.nn.region_shrinkage import cells_inside, to_cells

__all__ = ["RegionShrinkageLoss", "attention_target"]


def attention_target(boxes: Tensor, regions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Uniform distribution over the cells of each region's grid whose centres lie in the box, (B, h, w).

    Where none does (a box smaller than a cell, or beyond the region), all weight is on the cell nearest to the part of
    the box inside the region, or to the box.

    Args:
        boxes: (B, 4) in pixels: the person.
        regions: (B, 4) in pixels: what the grids lie over.
        grid: (h, w).
    """
    inside = torch.cat([torch.maximum(boxes[:, :2], regions[:, :2]), torch.minimum(boxes[:, 2:], regions[:, 2:])], 1)
    beyond = (inside[:, 2:] < inside[:, :2]).any(1, keepdim=True)
    cells = cells_inside(to_cells(torch.where(beyond, boxes, inside), regions, grid), grid).to(boxes.dtype)
    return cells / cells.sum((1, 2), keepdim=True)


class RegionShrinkageLoss(nn.Module):
    """Cross-entropy between where the person is and where the attention is, at every step.

        L = (1 / T) sum_t CE(U_t, A_t)          U_t uniform on the cells of the region that show the person

    The paper's 0-1 loss, 1 - |person in R_t| / |person|, is piecewise constant and teaches the attention nothing; this
    one does, and the other is watched (`coverage`). Liu et al., "Neural Person Search Machines", ICCV 2017.
    """

    def forward(self, logits: Tensor, boxes: Tensor, regions: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of maps (B, h, w), given before the softmax.

        Args:
            logits: (B, h, w): e_t over each region.
            boxes: (B, 4) in pixels: the person.
            regions: (B, 4) in pixels.
            weights: (B,) or None: 0 for pairs whose search has stopped.
        """
        if logits.dim() != 3 or boxes.shape != (len(logits), 4) or regions.shape != boxes.shape:
            raise ValueError(
                f"RegionShrinkageLoss: expected logits (B, h, w), boxes (B, 4) and regions (B, 4), got "
                f"{tuple(logits.shape)}, {tuple(boxes.shape)} and {tuple(regions.shape)}"
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        target = attention_target(boxes, regions, (logits.shape[1], logits.shape[2])).to(logits.dtype)
        losses = -(target * F.log_softmax(logits.flatten(1), 1).view_as(logits)).sum((1, 2))
        if weights is None:
            return losses.mean()
        return (losses * weights).sum() / weights.sum().clamp(min=1)
