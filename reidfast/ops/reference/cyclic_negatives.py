# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Cyclic-ranking hard negatives in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def _distances(x: Tensor, y: Tensor) -> Tensor:
    d = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.where(d.isnan(), torch.inf, d)


def cyclic_negatives(anchors: Tensor, centres: Tensor, own: Tensor, r: int, candidates: int) -> Tensor:
    """Index of the accepted negative of each anchor, -1 where none; signature of ``reidfast::cyclic_negatives``."""
    wide = torch.promote_types(anchors.dtype, torch.float32)
    anchors, centres = anchors.detach().to(wide), centres.detach().to(wide)
    num = len(centres)
    if own.device.type == "cpu" and not torch.compiler.is_compiling() and bool(((own < 0) | (own >= num)).any()):
        raise ValueError(f"cyclic_negatives: expected own in [0, B) with B={num}, got {own.min()} to {own.max()}")
    if len(anchors) == 0 or num < 2:
        return own.new_full((len(anchors),), -1)
    order = _distances(anchors, centres).argsort(dim=1, stable=True)  # ties: the lower index first
    nearest = order[order != own[:, None]].view(len(anchors), num - 1)[:, :candidates]
    between = _distances(centres, centres).fill_diagonal_(-1)  # a centre comes first in its own ranking
    place = between.argsort(dim=1, stable=True).argsort(dim=1)  # of w in v's ranking
    accepted = place[nearest, own[:, None]] >= r
    first = accepted.int().argmax(1)
    return torch.where(accepted.any(1), nearest.gather(1, first[:, None])[:, 0], -1)
