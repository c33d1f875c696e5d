# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Matching against a memory bank in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_logits(x: Tensor, bank: Tensor, scale: float, metric: str, exclude: Tensor | None) -> Tensor:
    """Logits of every row for every query, [..., B, N], -inf at the excluded rows; half types in float32."""
    wide = torch.promote_types(bank.dtype, torch.float32)
    x, bank = x.to(wide), bank.to(wide)
    logits = x @ bank.mT
    if metric == "sqeuclidean":
        logits = 2 * logits - x.square().sum(-1, keepdim=True) - bank.square().sum(-1).unsqueeze(-2)
    logits = scale * logits
    if exclude is not None:
        rows = torch.arange(bank.shape[-2], device=x.device)
        logits = logits.masked_fill(rows == exclude.unsqueeze(-1), -torch.inf)
    return logits


def check_rows(op: str, rows: int, k: int | None, targets: Tensor | None, exclude: Tensor | None) -> None:
    """Indices lie in the bank and k rows are usable; reads data, so on the CPU only."""
    if torch.compiler.is_compiling():
        return
    excluded = exclude is not None and exclude.device.type == "cpu" and exclude.numel() > 0
    if exclude is not None and excluded and not -1 <= int(exclude.min()) <= int(exclude.max()) < rows:
        raise ValueError(
            f"{op}: expected exclude from -1 to N-1={rows - 1}, got {int(exclude.min())} to {exclude.max()}"
        )
    if k is not None:
        usable = rows - int(exclude is not None and excluded and int(exclude.max()) >= 0)
        if not 1 <= k <= usable:
            raise ValueError(
                f"{op}: expected k of at least 1 and at most the usable rows ({usable} of N={rows}), got k={k}"
            )
    if targets is not None and targets.device.type == "cpu" and targets.numel() > 0:
        if not 0 <= int(targets.min()) <= int(targets.max()) < rows:
            raise ValueError(
                f"{op}: expected targets from 0 to N-1={rows - 1}, got {int(targets.min())} to {targets.max()}"
            )
        if exclude is not None and bool((targets == exclude).any()):
            raise ValueError(f"{op}: expected targets that are not excluded, got a row that is both")


def memory_match(
    x: Tensor, bank: Tensor, k: int, scale: float, metric: str, exclude: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp and the k best logits of every query; signature of ``reidfast::memory_match``."""
    check_rows("memory_match", bank.shape[-2], k, None, exclude)
    logits = memory_logits(x, bank, scale, metric, exclude)
    best, rows = logits.sort(dim=-1, descending=True, stable=True)  # ties: lowest row
    return logits.logsumexp(-1), best[..., :k], rows[..., :k]
