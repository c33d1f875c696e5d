# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The memory-bank loss in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from reidfast.ops.reference.memory_match import check_rows, memory_logits


def memory_loss(
    x: Tensor, bank: Tensor, k: int | None, targets: Tensor | None, scale: float, metric: str, exclude: Tensor | None
) -> Tensor:
    """Log-sum-exp over all rows minus that over the k best, or minus the target's; ``reidfast::memory_loss``."""
    if (k is None) == (targets is None):
        raise ValueError(f"memory_loss: expected exactly one of k and targets, got {'both' if k else 'neither'}")
    check_rows("memory_loss", bank.shape[-2], k, targets, exclude)
    logits = memory_logits(x, bank if targets is not None else bank.detach(), scale, metric, exclude)
    if targets is not None:
        rows = targets.expand(logits.shape[:-1]).unsqueeze(-1)
    else:
        rows = logits.detach().sort(dim=-1, descending=True, stable=True).indices[..., :k]
    best = logits.gather(-1, rows).logsumexp(-1)
    rest = logits.scatter(-1, rows, -torch.inf)
    alone = (rest == -torch.inf).all(-1)  # nothing but the best: loss 0, gradient 0
    gap = rest.masked_fill(alone.unsqueeze(-1), 0).logsumexp(-1) - best
    return torch.where(alone, 0, torch.logaddexp(gap, torch.zeros_like(gap)))
