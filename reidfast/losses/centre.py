# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Centre loss, with the optimiser rule that belongs to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CentreLoss(nn.Module):
    """Mean squared distance of each feature to its identity's learned centre.

        L = (1/B) sum_i clamp(||f_i - c_{y_i}||^2, 1e-12, 1e12)

    Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016, without its factor
    1/2, as the strong baseline of Luo et al. (CVPRW 2019) has it.

    In a total loss ``... + weight * centre_loss(f, y)`` the centres are to move as if the weight were 1, by plain SGD
    at rate 0.5: call ``step_centres(weight)`` after ``backward`` in place of an optimiser's step over ``centres``.

    Args:
        num_classes: Identities C.
        dim: Feature size D.
        lr: Rate of the centres' own SGD.
        generator: Generator of the initial centres, N(0, 1).
    """

    def __init__(
        self, num_classes: int, dim: int, *, lr: float = 0.5, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.lr = lr
        self.centres = nn.Parameter(torch.randn(num_classes, dim, generator=generator))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Features (B, D), labels (B,) int64 in [0, C) -> scalar; an empty batch gives 0."""
        if features.dim() != 2 or features.shape[1] != self.centres.shape[1]:
            raise ValueError(f"CentreLoss: expected features (B, {self.centres.shape[1]}), got {tuple(features.shape)}")
        if labels.shape != features.shape[:1]:
            raise ValueError(f"CentreLoss: expected labels ({features.shape[0]},), got {tuple(labels.shape)}")
        wide = torch.promote_types(features.dtype, torch.float32)
        squared = (features.to(wide) - self.centres[labels].to(wide)).square().sum(1).clamp(1e-12, 1e12)
        return squared.sum() / max(1, features.shape[0])

    @torch.no_grad()
    def step_centres(self, weight: float) -> None:
        """Move the centres by SGD with their gradient divided by the loss's ``weight`` in the total, then clear it."""
        if weight <= 0:
            raise ValueError(f"CentreLoss: expected a weight above 0, got {weight}")
        if self.centres.grad is not None:
            self.centres.add_(self.centres.grad, alpha=-self.lr / weight)
            self.centres.grad = None
