# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Inputs that look like re-ID data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def devices() -> list[str]:
    """Devices that tests can run on here: "cpu", and "cuda" where there is one."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def make_identities(rows: int, per_identity: int = 4, *, device: str | torch.device = "cpu", seed: int = 0) -> Tensor:
    """Shuffled identity labels: int64 (rows,), ``per_identity`` rows of each but the last."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return (torch.arange(rows) // per_identity)[order].to(device)


def make_embeddings(
    rows: int,
    dim: int,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    *,
    per_identity: int = 4,
    spread: float = 0.5,
    normalized: bool = True,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Clustered embeddings and their identities: (rows, dim) in ``dtype`` and int64 (rows,).

    Args:
        rows: How many.
        dim: Feature size D.
        dtype: Floating-point dtype of the embeddings.
        device: Where both go.
        per_identity: Rows of each identity.
        spread: Standard deviation within an identity over that between identities.
        normalized: Whether rows have unit length.
        seed: Seed of a generator of its own; the global one is left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = make_identities(rows, per_identity, seed=seed)
    centres = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    x = centres[labels] + spread * torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    if normalized:
        x = torch.nn.functional.normalize(x, dim=-1)
    return x.to(device, dtype), labels.to(device)


def shape_id(value: Any) -> str:
    """Pytest id of a shape: (4, 1) -> 4x1."""
    return "x".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value).removeprefix("torch.")
