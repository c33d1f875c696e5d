# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A memory bank: one feature per training image (or cluster), updated by momentum, with its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from reidfast import ops
from reidfast.ops._memory import METRICS


class MemoryBank(nn.Module):
    """A memory bank of N rows, in M parts or in one, and the loss of queries against it.

    With ``k``, the patch-based discriminative feature loss of PAUL (Yang et al., "Patch-based Discriminative Feature
    Learning for Unsupervised Person Re-identification", CVPR 2019): all rows but the query's own against the k nearest.
    Without, each query's own row is its target: OIM, ECN, SpCL, cluster-contrast (metric "dot", scale 1/temperature).

    The rows are the buffer ``bank``, (M, N, d) or (N, d), and ``filled``, (N,), says which have been written: both are
    saved in checkpoints, neither is a parameter.

    Args:
        rows: N.
        dim: d.
        parts: M; None: a single bank and the 2-D form of everything.
        k: How many best rows; None: the loss is against the target rows.
        scale: Multiplier of the logits (PAUL: 15 on Market-1501, 5 on DukeMTMC-reID, in the released code).
        metric: "sqeuclidean" or "dot".
        momentum: Weight of the old value in ``update`` (PAUL 0.9, OIM 0.5).
        normalize: Whether a row is brought to unit length after each update (PAUL: no; OIM, ECN, SpCL: yes).

    Example:
        >>> bank = MemoryBank(rows=100, dim=8, parts=6, k=10)
        >>> bank.write(torch.arange(100), nn.functional.normalize(torch.randn(6, 100, 8), dim=-1))
        >>> x, indices = nn.functional.normalize(torch.randn(6, 4, 8), dim=-1), torch.tensor([3, 1, 4, 15])
        >>> bank.update(indices, x)
        >>> bank(x, indices).shape
        torch.Size([6, 4])
    """

    bank: Tensor
    filled: Tensor

    def __init__(
        self,
        rows: int,
        dim: int,
        *,
        parts: int | None = None,
        k: int | None = 10,
        scale: float = 15.0,
        metric: str = "sqeuclidean",
        momentum: float = 0.9,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if rows < 1 or dim < 1 or (parts is not None and parts < 1):
            raise ValueError(f"MemoryBank: expected rows, dim and parts of at least 1, got {rows}, {dim} and {parts}")
        if k is not None and not 1 <= k <= rows:
            raise ValueError(f"MemoryBank: expected k from 1 to rows={rows}, or None, got {k}")
        if metric not in METRICS:
            raise ValueError(f"MemoryBank: expected metric to be one of {METRICS}, got {metric!r}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"MemoryBank: expected momentum, the weight of the old value, from 0 to 1, got {momentum}")
        self.k, self.scale, self.metric, self.momentum, self.normalize = k, scale, metric, momentum, normalize
        shape = (rows, dim) if parts is None else (parts, rows, dim)
        self.register_buffer("bank", torch.zeros(shape))
        self.register_buffer("filled", torch.zeros(rows, dtype=torch.bool))

    @torch.no_grad()
    def write(self, indices: Tensor, values: Tensor) -> None:
        """Put ``values`` (M, B, d) into rows ``indices`` (B,) as they are, the last where an index repeats."""
        ops.memory_update_(self.bank, indices, values, momentum=0.0)
        self.filled[indices[indices >= 0]] = True

    @torch.no_grad()
    def update(self, indices: Tensor, values: Tensor) -> None:
        """Blend ``values`` (M, B, d) into rows ``indices`` (B,) in batch order; -1: skip."""
        ops.memory_update_(self.bank, indices, values, momentum=self.momentum, normalize=self.normalize)

    @torch.no_grad()
    def write_or_update(self, indices: Tensor, values: Tensor) -> None:
        """Rows that were never written become ``values``, the others blend with them (PAUL's image centres)."""
        filled = self.filled[indices.clamp(min=0)]
        known = torch.where(filled, indices, -1)
        self.write(torch.where(filled, -1, indices), values)
        self.update(known, values)

    @torch.no_grad()
    def initialize(self, batches: Iterable[tuple[Any, Tensor]], embed: Callable[[Any], Tensor]) -> None:
        """One pass over the training set that writes every row.

        Args:
            batches: Pairs of what ``embed`` takes and the rows (B,) that its result belongs to.
            embed: Gives the features, (M, B, d) or (B, d). Its module's mode is the caller's business: PAUL's code
                leaves it in train mode, so that batch statistics are used and updated.

        Raises:
            ValueError: Rows are left that no batch has written.
        """
        for inputs, indices in batches:
            self.write(indices.to(self.bank.device), embed(inputs).to(self.bank.device))
        missing = (~self.filled).nonzero().flatten()
        if len(missing):
            raise ValueError(
                f"MemoryBank: expected the pass to write every row, got {len(missing)} of {len(self.filled)} "
                f"unwritten, the first {missing[0].item()}; is the loader dropping its last batch?"
            )

    def match(self, x: Tensor, k: int | None = None, *, exclude: Tensor | None = None) -> ops.MemoryMatch:
        """Log-sum-exp and the k best rows of every query; see ``reidfast.ops.memory_match``."""
        k = k or self.k or 1
        return ops.memory_match(x, self.bank, k, scale=self.scale, metric=self.metric, exclude=exclude)

    def forward(self, x: Tensor, indices: Tensor, exclude: Tensor | None = None) -> Tensor:
        """Loss of every query, not reduced.

        Args:
            x: (M, B, d) or (B, d).
            indices: (B,) int64: the row of each query. With k it is left out (-1: none is); without, it is the target.
            exclude: (B,) int64, without k only: rows that are left out.

        Returns:
            (M, B) or (B,).
        """
        if self.k is None:
            return ops.memory_loss(x, self.bank, targets=indices, scale=self.scale, metric=self.metric, exclude=exclude)
        if exclude is not None:
            raise ValueError("MemoryBank: expected no exclude beside k: the query's own row is what is left out")
        return ops.memory_loss(x, self.bank, self.k, scale=self.scale, metric=self.metric, exclude=indices)

    def extra_repr(self) -> str:
        """What the printed module adds."""
        return (
            f"{'x'.join(map(str, self.bank.shape))}, k={self.k}, scale={self.scale}, metric={self.metric!r}, "
            f"momentum={self.momentum}, normalize={self.normalize}"
        )
