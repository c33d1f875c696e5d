# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Circle loss over the pairs of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class CircleLoss(nn.Module):
    """Pair similarities weighted by how far each still is from its optimum.

        a_p = max(0, 1 + m - s_p),  a_n = max(0, s_n + m)                              constants for the gradient
        L_i = softplus( logsumexp_n g a_n (s_n - m) + logsumexp_p -g a_p (s_p - (1 - m)) )
        L   = mean over the anchors that have a positive and a negative

    s are cosine similarities. Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR
    2020, in its pairwise form with one anchor a term.

    Args:
        margin: m.
        scale: g.
    """

    def __init__(self, margin: float = 0.25, scale: float = 64.0) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Features (B, D) of any length, labels (B,) int64 -> scalar; 0 where no anchor has both kinds of pair."""
        if features.dim() != 2 or labels.shape != features.shape[:1]:
            raise ValueError(
                "CircleLoss: expected features (B, D) and labels (B,), "
                f"got {tuple(features.shape)} and {tuple(labels.shape)}"
            )
        x = functional.normalize(features.float() if features.dtype != torch.float64 else features, dim=1)
        with torch.autocast(x.device.type, enabled=False):
            similarity = x @ x.t()
        same = labels[:, None] == labels[None, :]
        positive = same & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        m, g = self.margin, self.scale
        push = g * (similarity.detach() + m).clamp(min=0) * (similarity - m)
        pull = -g * (1 + m - similarity.detach()).clamp(min=0) * (similarity - (1 - m))
        counts = positive.any(1) & (~same).any(1)
        if not torch.compiler.is_compiling() and x.device.type == "cpu" and not bool(counts.any()):
            return similarity.sum() * 0
        total = push.masked_fill(same, -torch.inf)[counts].logsumexp(1)
        total = total + pull.masked_fill(~positive, -torch.inf)[counts].logsumexp(1)
        return functional.softplus(total).mean()
