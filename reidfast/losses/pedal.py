# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Patch-based discriminative feature learning loss of PAUL."""

from __future__ import annotations

from torch import Tensor, nn

from reidfast import ops
from reidfast.nn import MemoryBank


class PEDAL(nn.Module):
    """Patch-based discriminative feature learning: each patch towards its k nearest in the bank, away from the rest.

        L = mean over patches m and images i of
            log sum_{j != p_i} exp(-s ||x_i - w_j||^2)  -  log sum_{j in K_i} exp(-s ||x_i - w_j||^2)

    K_i are the k nearest rows of the bank, the image's own row p_i left out of both sums. Yang et al., "Patch-based
    Discriminative Feature Learning for Unsupervised Person Re-identification", CVPR 2019. Through ``ops.memory_loss``:
    one read of the bank for loss and gradient, no (B, N) array.

    Args:
        k: How many nearest rows.
        scale: s, the multiplier of squared distances. The authors' code has 15 (Market-1501) and 5 (DukeMTMC-reID); the
            paper prints 30 and 10, the same where its exponent is -(s / 2) ||x - w||^2.

    Notes:
        The rows x are expected at unit length; rows of the bank are used with the length they have. The bank is a
        constant: no gradient passes through it or through the selection. PAUL updates the bank before the loss.

    Example:
        >>> x = nn.functional.normalize(torch.randn(6, 4, 8), dim=2)
        >>> bank = nn.functional.normalize(torch.randn(6, 100, 8), dim=2)
        >>> bool(PEDAL(k=3)(x, bank, torch.arange(4)) >= 0)
        True
    """

    def __init__(self, k: int = 10, scale: float = 15.0) -> None:
        super().__init__()
        if k < 1 or not scale > 0:
            raise ValueError(f"PEDAL: expected k >= 1 and scale > 0, got k={k}, scale={scale}")
        self.k, self.scale = k, scale

    def forward(self, x: Tensor, bank: Tensor | MemoryBank, indices: Tensor) -> Tensor:
        """Loss of one batch.

        Args:
            x: Features of the patches, (M, B, d), or (B, d) for one bank.
            bank: (M, N, d) or (N, d), or a ``MemoryBank`` that holds them (its own k and scale are not used).
            indices: Row of each image in the bank, (B,) int64; -1: it has none.

        Returns:
            Scalar, float32 for half features; 0 for no rows.
        """
        rows = bank.bank if isinstance(bank, MemoryBank) else bank
        losses = ops.memory_loss(x, rows, self.k, scale=self.scale, exclude=indices)
        return losses.sum() / max(1, losses.numel())

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"k={self.k}, scale={self.scale}"
