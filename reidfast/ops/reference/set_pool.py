# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Quality-weighted set pooling in plain PyTorch."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional


def _sum_per_set(x: Tensor, sets: Tensor, num_sets: int) -> Tensor:
    return x.new_zeros((num_sets, *x.shape[1:])).index_add(0, sets, x)


def _check_offsets(offsets: list[int], num_frames: int) -> None:
    if offsets[0] != 0 or offsets[-1] != num_frames:
        raise ValueError(f"set_pool: expected offsets from 0 to T={num_frames}, got {offsets[0]} to {offsets[-1]}")
    for s, (first, last) in enumerate(pairwise(offsets)):
        if first > last:
            raise ValueError(f"set_pool: expected offsets that never decrease, got {first} before {last} at {s + 1}")


def set_pool(features: Tensor, scores: Tensor, offsets: Tensor | None, weighting: str) -> Tensor:
    """Weighted mean of the frames of each set; signature of ``reidfast::set_pool``."""
    wide = torch.promote_types(features.dtype, torch.float32)
    x, z = features.to(wide), scores.to(wide)
    if weighting != "linear":
        z = functional.logsigmoid(z) if weighting == "sigmoid" else z
    if offsets is None:
        if weighting == "linear":
            total = z.sum(-1, keepdim=True)
            weights = torch.where(total == 0, 0, z / torch.where(total == 0, 1, total))
        else:
            weights = z.softmax(-1)
        return (weights.unsqueeze(-1) * x).sum(-2).to(features.dtype)
    num_sets = offsets.numel() - 1
    if offsets.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_offsets(offsets.tolist(), len(x))
    sets = torch.repeat_interleave(offsets.diff(), output_size=len(x))
    if weighting != "linear":
        highest = z.new_full((num_sets,), -torch.inf).scatter_reduce(0, sets, z.detach(), "amax")
        z = torch.exp(z - highest[sets])
    total = _sum_per_set(z, sets, num_sets)
    weights = z / torch.where(total == 0, torch.inf, total)[sets]
    return _sum_per_set(weights.unsqueeze(-1) * x, sets, num_sets).to(features.dtype)
