# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Penalty on attention maps that overlap."""

from __future__ import annotations

from torch import Tensor, nn

from reidfast.ops import DiverseAttention
from reidfast.ops._checks import check_choice

REDUCTIONS = ("official", "paper_mean")


class DiversityLoss(nn.Module):
    """Pulls the attention maps of a frame apart, from the overlap Q_b of each frame.

        official:    L = weight * sqrt(sum_b Q_b + 1e-5)
        paper_mean:  L = weight * (1/B) sum_b Q_b,          Q_b = ||sqrt(A_b) sqrt(A_b)^T - I||_F^2

    Li, Bak, Carr, Wang, "Diversity Regularized Spatiotemporal Attention for Video-based Person Re-identification",
    CVPR 2018: the form of the paper and, as default, that of the authors' code. The official form is a root over the
    batch's sum, so its pull on each frame falls with the root of the number of frames: log the mean of ``overlap``
    beside it, and do not compare its value between batch sizes. Its gradient is finite where the attention underflows
    to zero, because ``reidfast.ops.diverse_attention`` differentiates the overlap with respect to the logits.

    Args:
        reduction: "official" or "paper_mean".
        weight: Factor of the loss.
    """

    def __init__(self, reduction: str = "official", *, weight: float = 1.0) -> None:
        super().__init__()
        check_choice("DiversityLoss", "reduction", reduction, REDUCTIONS)
        self.reduction, self.weight = reduction, weight

    def forward(self, overlap: Tensor | DiverseAttention) -> Tensor:
        """Overlap (B,) of ``reidfast.ops.diverse_attention``, or its whole result -> scalar; an empty batch gives 0."""
        q = overlap.overlap if isinstance(overlap, DiverseAttention) else overlap
        if q.dim() != 1:
            raise ValueError(
                f"DiversityLoss: expected overlap (B,), got {tuple(q.shape)}; pass the overlap of diverse_attention"
            )
        if q.shape[0] == 0:
            return q.sum()
        return self.weight * ((q.sum() + 1e-5).sqrt() if self.reduction == "official" else q.mean())

    def extra_repr(self) -> str:
        """What the printed module adds."""
        return f"reduction={self.reduction!r}, weight={self.weight}"
