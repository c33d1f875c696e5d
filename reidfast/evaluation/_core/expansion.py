# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Means of nearest features."""

from __future__ import annotations

import torch
from torch import Tensor

from reidfast.evaluation.search import search


def unit(x: Tensor) -> Tensor:
    """Rows of unit length."""
    return torch.nn.functional.normalize(x, dim=1)


def weighted_mean(x: Tensor, items: Tensor, k: int, alpha: float, own: bool) -> Tensor:
    """Unit sum of the k nearest rows of `items` (unit length), weights cos^alpha, and of x itself with weight 1."""
    distances, indices = search(x, items, min(k, len(items)))
    weights = (1 - distances).clamp_min(0) ** alpha
    total = x.clone() if own else torch.zeros_like(x)
    for j in range(indices.shape[1]):  # k rows one after the other: no (N, k, D) array
        total += weights[:, j, None] * items[indices[:, j]]
    return unit(total)
