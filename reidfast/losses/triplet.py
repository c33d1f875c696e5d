# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Batch-hard triplet loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from reidfast import ops


class TripletLoss(nn.Module):
    """Batch-hard triplet loss: each anchor against its farthest positive and its nearest negative.

        margin m:     mean_i max(0, m + d_ap[i] - d_an[i])
        margin None:  mean_i log(1 + exp(d_ap[i] - d_an[i]))           (soft margin)

    Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", arXiv:1703.07737. Distances
    are Euclidean, not squared (``reidfast.ops.batch_hard``). The mean goes over the anchors that have both a positive
    and a negative; a batch without any gives 0 and zero gradients.

    Args:
        margin: The margin, or None for the soft margin.
        normalize: Whether to scale rows to unit length first.

    Notes:
        Peers count an anchor as its own positive at distance 0. That differs only for an identity with a single row in
        the batch, which has no positive: here it is left out of the mean. P x K batches have no such row.

    Example:
        >>> import torch
        >>> TripletLoss(margin=0.5)(torch.tensor([[0.0], [1.0], [3.0], [4.0]]), torch.tensor([0, 0, 1, 1]))
        tensor(0.)
    """

    def __init__(self, margin: float | None = 0.3, *, normalize: bool = False) -> None:
        super().__init__()
        if margin is not None and not margin >= 0:
            raise ValueError(f"TripletLoss: expected margin >= 0 or None (soft margin), got {margin}")
        self.margin = margin
        self.normalize = normalize

    def forward(self, features: Tensor, pids: Tensor) -> Tensor:
        """Loss of one batch.

        Args:
            features: Embeddings (B, D).
            pids: Identities (B,).

        Returns:
            Scalar, float32 for half features.
        """
        if self.normalize:
            features = functional.normalize(features, dim=1)
        hard = ops.batch_hard(features, pids)
        usable = (hard.i_ap >= 0) & (hard.i_an >= 0)
        gap = (hard.d_ap - hard.d_an).where(usable, 0)
        losses = functional.softplus(gap) if self.margin is None else (self.margin + gap).relu()
        return losses.where(usable, 0).sum() / usable.sum().clamp(min=1)

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"margin={self.margin}, normalize={self.normalize}"


class NearestPositiveTripletLoss(nn.Module):
    """Each anchor's nearest positive against its nearest negative: the triplet loss of PAUL's supervised pre-training.

        d(i, j) = sqrt(||x_i - x_j||^2 + eps)
        mean_i max(0, margin + min over j != i, y_j = y_i of d(i, j) - min over y_j != y_i of d(i, j))

    Yang et al., "Patch-based Discriminative Feature Learning for Unsupervised Person Re-identification", CVPR 2019, as
    in the authors' code. The mean goes over the anchors that have both; a batch without any gives 0.

    Args:
        margin: The margin.
        normalize: Whether to scale rows to unit length first.
        eps: Added to squared distances: a row and its copy have a finite gradient.

    Example:
        >>> import torch
        >>> loss = NearestPositiveTripletLoss(margin=0.5, normalize=False)
        >>> loss(torch.tensor([[0.0], [1.0], [3.0], [4.0]]), torch.tensor([0, 0, 1, 1]))
        tensor(0.)
    """

    def __init__(self, margin: float = 1.0, *, normalize: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        if not margin >= 0 or not eps > 0:
            raise ValueError(
                f"NearestPositiveTripletLoss: expected margin >= 0 and eps > 0, got margin={margin}, eps={eps}"
            )
        self.margin, self.normalize, self.eps = margin, normalize, eps

    def forward(self, features: Tensor, pids: Tensor) -> Tensor:
        """Loss of one batch.

        Args:
            features: Embeddings (B, D).
            pids: Identities (B,).

        Returns:
            Scalar, float32 for half features.
        """
        if features.dim() != 2 or pids.shape != features.shape[:1]:
            raise ValueError(
                "NearestPositiveTripletLoss: expected features (B, D) and pids (B,), "
                f"got {tuple(features.shape)} and {tuple(pids.shape)}"
            )
        if len(features) < 2:
            return features.sum(dtype=torch.promote_types(features.dtype, torch.float32)) * 0
        x = features.to(torch.promote_types(features.dtype, torch.float32))
        if self.normalize:
            x = functional.normalize(x, dim=1)
        same = pids[:, None] == pids
        alone = same & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        with torch.no_grad():  # the choice; what is chosen is computed again, from the rows themselves
            between = torch.cdist(x, x)
            to_positive, positive = between.where(alone, torch.inf).min(1)
            to_negative, negative = between.where(~same, torch.inf).min(1)
            usable = to_positive.isfinite() & to_negative.isfinite()
        d_ap = ((x - x[positive]).square().sum(1) + self.eps).sqrt()
        d_an = ((x - x[negative]).square().sum(1) + self.eps).sqrt()
        losses = (self.margin + d_ap - d_an).relu()
        return losses.where(usable, 0).sum() / usable.sum().clamp(min=1)

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"margin={self.margin}, normalize={self.normalize}"
