# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The set-level losses of QAN."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SetTripletLoss(nn.Module):
    """Triplet loss of anchor, positive and negative sets, with squared distances and a factor of a half.

        L = 1/(2N) sum max(0, m + ||a - p||^2 - ||a - n||^2)  +  w 1/(2N) sum ||a - p||^2

    Liu, Yan, Ouyang, "Quality Aware Network for Set to Set Recognition", CVPR 2017, as its released Caffe layers
    compute it. The second sum, a contrastive loss whose pairs are all alike, is in the released code (w =
    1) and not in the paper (w = 0).

    Args:
        margin: m; 1.8 with the released train_PQAN_pool2, 1.2 with train_PQAN_image.
        contrastive: w.
        normalize: Whether to scale rows to unit length first.

    Example:
        >>> import torch
        >>> x = torch.eye(3)
        >>> SetTripletLoss(margin=1.2)(x[:1], x[1:2], x[2:])
        tensor(0.6000)
    """

    def __init__(self, margin: float = 1.2, *, contrastive: float = 0.0, normalize: bool = True) -> None:
        super().__init__()
        if margin < 0 or contrastive < 0:
            raise ValueError(f"SetTripletLoss: expected margin and contrastive >= 0, got {margin} and {contrastive}")
        self.margin, self.contrastive, self.normalize = margin, contrastive, normalize

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Loss of N triplets, each argument (N, D); 0 for none."""
        if not anchor.shape == positive.shape == negative.shape or anchor.dim() != 2:
            raise ValueError(
                f"SetTripletLoss: expected three (N, D) of one shape, "
                f"got {tuple(anchor.shape)}, {tuple(positive.shape)}, {tuple(negative.shape)}"
            )
        wide = torch.promote_types(anchor.dtype, torch.float32)
        anchor, positive, negative = anchor.to(wide), positive.to(wide), negative.to(wide)
        if self.normalize:
            anchor, positive, negative = (functional.normalize(x, dim=1) for x in (anchor, positive, negative))
        alike = (anchor - positive).square().sum(1)
        other = (anchor - negative).square().sum(1)
        losses = (self.margin + alike - other).relu()
        if self.contrastive:
            losses = losses + self.contrastive * alike
        return losses.sum() / (2 * max(1, len(anchor)))

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"margin={self.margin}, contrastive={self.contrastive}, normalize={self.normalize}"
