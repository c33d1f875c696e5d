# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The four-part loss of RRU + STIM."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from reidfast.losses.triplet import TripletLoss


class RRUSTIMTerms(NamedTuple):
    """The loss and its four terms, scalars; ``auxiliary`` is zero where there is no such classifier."""

    total: Tensor
    identity: Tensor
    auxiliary: Tensor
    video: Tensor
    parts: Tensor


class RRUSTIMLoss(nn.Module):
    """Cross-entropy of two classifiers, batch-hard triplets of the video feature and of each horizontal part.

        L = CE(logits) + CE(auxiliary) + Tri(video) + (1/P) sum_p Tri(part_p)

    Liu, Yuan, Zhou, Li, Li, "Spatial and Temporal Mutual Promotion for Video-based Person Re-identification", AAAI
    2019; weights of 1 and the margin of the authors' code. Distances are Euclidean, of features that are not
    normalised.

    Args:
        margin: Margin of the triplet losses.
        parts_weight: Weight of the loss over the parts.
        auxiliary_weight: Weight of the auxiliary classifier's loss.
    """

    def __init__(self, margin: float = 0.4, *, parts_weight: float = 1.0, auxiliary_weight: float = 1.0) -> None:
        super().__init__()
        self.triplet = TripletLoss(margin)
        self.parts_weight, self.auxiliary_weight = parts_weight, auxiliary_weight

    def forward(
        self,
        video: Tensor,
        parts: Tensor,
        logits: Tensor,
        auxiliary: Tensor | None,
        labels: Tensor,
        *,
        gather: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> RRUSTIMTerms:
        """The fields of the model's output, and the classes.

        Args:
            video: (B, D).
            parts: (B, C, P).
            logits: (B, num_classes).
            auxiliary: (B, num_classes) or None.
            labels: (B,) int64.
            gather: Brings together what triplets are made of, over several processes: `reidfast.nn.gather_rows`.
        """
        if parts.dim() != 3 or len(parts) != len(video):
            raise ValueError(
                f"RRUSTIMLoss: expected parts (B, C, P) beside video {tuple(video.shape)}, got {tuple(parts.shape)}"
            )
        identity = functional.cross_entropy(logits, labels)
        second = identity.new_zeros(()) if auxiliary is None else functional.cross_entropy(auxiliary, labels)
        everybody = gather(labels)
        whole = self.triplet(gather(video), everybody)
        rows = gather(parts).permute(2, 0, 1).contiguous()  # each part's features lie together
        stripes = sum((self.triplet(part, everybody) for part in rows), start=identity.new_zeros(())) / len(rows)
        total = identity + self.auxiliary_weight * second + whole + self.parts_weight * stripes
        return RRUSTIMTerms(total, identity, second, whole, stripes)
