# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Hardest positive and negative of a batch in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def _hardest(hardness: Tensor, allowed: Tensor) -> Tensor:
    """Per row the allowed entry of highest value, the first of equals, NaN highest of all; -1 where none is allowed."""
    best = torch.where(allowed, hardness, -torch.inf).max(1).indices
    best = torch.where(allowed.gather(1, best[:, None])[:, 0], best, allowed.int().argmax(1))  # all allowed are -inf
    return torch.where(allowed.any(1), best, -1)


def batch_hard(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distances and indices of the hardest pairs; signature of ``reidfast::batch_hard``."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if len(x) == 0:
        return x.sum(1), x.sum(1), labels.clone(), labels.clone()
    distances = torch.cdist(x.detach(), x.detach(), compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels
    i_ap = _hardest(distances, same & ~torch.eye(len(x), dtype=torch.bool, device=x.device))
    i_an = _hardest(-distances, ~same)
    d_ap = torch.linalg.vector_norm(x - x[i_ap.clamp_min(0)], dim=1)
    d_an = torch.linalg.vector_norm(x - x[i_an.clamp_min(0)], dim=1)
    return torch.where(i_ap < 0, -torch.inf, d_ap), torch.where(i_an < 0, torch.inf, d_an), i_ap, i_an
