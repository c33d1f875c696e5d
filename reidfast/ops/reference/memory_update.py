# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Momentum update of bank rows in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def memory_update_(bank: Tensor, indices: Tensor, values: Tensor, momentum: float, normalize: bool) -> None:
    """Blend values into rows, one after another; signature of ``reidfast::memory_update_``."""
    wide = torch.promote_types(bank.dtype, torch.float32)
    rows, values = indices.tolist(), values.clone()  # values may be part of the bank
    if any(not -1 <= row < bank.shape[-2] for row in rows):
        raise ValueError(f"memory_update_: expected indices from -1 to N-1={bank.shape[-2] - 1}, got {rows}")
    for b, row in enumerate(rows):
        if row < 0:
            continue
        new = momentum * bank[..., row, :].to(wide) + (1 - momentum) * values[..., b, :].to(wide)
        if normalize:
            norm = new.norm(dim=-1, keepdim=True)
            new = new / torch.where(norm == 0, 1, norm)  # zero rows stay zero
        bank[..., row, :] = new.to(bank.dtype)
