# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Penalty on attention maps that overlap."""

from __future__ import annotations

import torch
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


class KLDiversityLoss(nn.Module):
    """Pulls the attention maps of a frame apart by their Kullback-Leibler divergence: the form that was given up.

        L = - weight * mean over b, i != j of sum_l A_bil (log A_bil - log A_bjl)

    Li, Bak, Carr, Wang, "Diversity Regularized Spatiotemporal Attention for Video-based Person Re-identification",
    CVPR 2018, compare with it and prefer the overlap of `DiversityLoss`: the divergence has no upper bound and its
    largest terms come from cells of almost no attention. Here for that comparison.

    Args:
        weight: Factor of the loss.
        eps: Attention below it counts as it; its logarithm passes no gradient.
    """

    def __init__(self, *, weight: float = 1.0, eps: float = 1e-12) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, attention: Tensor | DiverseAttention) -> Tensor:
        """Attention (B, K, L) of ``reidfast.ops.diverse_attention``, or its whole result -> scalar; K = 1 gives 0."""
        a = attention.attention if isinstance(attention, DiverseAttention) else attention
        if a.dim() != 3:
            raise ValueError(f"KLDiversityLoss: expected attention (B, K, L), got {tuple(a.shape)}")
        batch, maps = a.shape[:2]
        if batch == 0 or maps < 2:
            return a.sum() * 0
        a = a.to(torch.promote_types(a.dtype, torch.float32))  # float16 does not hold eps
        log = a.clamp_min(self.eps).log()
        own = (a * log).sum(2).sum() * (maps - 1)
        with torch.autocast(a.device.type, enabled=False):  # the difference of two nearly equal sums
            cross = torch.einsum("bil,bjl->", a, log) - (a * log).sum()
        return -self.weight * (own - cross) / (batch * maps * (maps - 1))

    def extra_repr(self) -> str:
        """What the printed module adds."""
        return f"weight={self.weight}, eps={self.eps}"
