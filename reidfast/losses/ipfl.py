# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Image-level patch feature learning of PAUL."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from reidfast import ops


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """Row-wise Euclidean distance whose gradient at distance zero is zero."""
    squared = (x - y).square().sum(1)
    positive = squared > 0
    return torch.where(positive, squared.where(positive, 1).sqrt(), squared)


class IPFL(nn.Module):
    """Image-level patch feature learning: an unsupervised triplet loss with trustworthy hard negatives.

        pos_a = ||f_a - c_own(a)||            neg_a = ||f_a - c_v(a)||, 0 where no v(a) is accepted
        loss  = mean_a max(0, margin + pos_a - neg_a)

    Yang et al., "Patch-based Discriminative Feature Learning for Unsupervised Person Re-identification", CVPR 2019. The
    rows f are embeddings of images and of their surrogates, the centres c one per image of the batch; v(a) is the
    nearest centre that does not count own(a) among its r nearest (``reidfast.ops.cyclic_negatives``). Centres carry no
    gradient.

    Args:
        margin: The margin.
        r: Length of the list of nearest centres that decides who is a mutual neighbour.
        candidates: How many centres to examine per row.

    Notes:
        A batch of B <= r images has no acceptable negative (it only pulls): drop such a last batch. With B < 2r a
        warning is given once.
        A row equal to its centre has distance 0 and gradient 0.
    """

    def __init__(self, margin: float = 2.0, *, r: int = 3, candidates: int = 15) -> None:
        super().__init__()
        if r < 1 or candidates < 1:
            raise ValueError(f"IPFL: expected r >= 1 and candidates >= 1, got r={r}, candidates={candidates}")
        self.margin = margin
        self.r = r
        self.candidates = candidates
        self._warned = False

    def forward(self, embeddings: Tensor, centres: Tensor, own: Tensor) -> Tensor:
        """Loss of one batch.

        Args:
            embeddings: Rows f, (A, D): images and surrogates.
            centres: (B, D), one per image.
            own: Index of each row's own centre, (A,) int64.

        Returns:
            Scalar, float32 for half embeddings. 0 for no rows.
        """
        if len(centres) < 2 * self.r and not self._warned:
            self._warned = True
            warnings.warn(
                f"IPFL: a batch of B={len(centres)} images with r={self.r} has few trustworthy negatives "
                f"({'none' if len(centres) <= self.r else 'B < 2r'}); use larger batches and drop a small last one",
                stacklevel=2,
            )
        centres = centres.detach()
        negatives = ops.cyclic_negatives(embeddings.detach(), centres, own, r=self.r, candidates=self.candidates)
        wide = torch.promote_types(embeddings.dtype, torch.float32)
        rows, centres = embeddings.to(wide), centres.to(wide)
        found = negatives >= 0
        to_own = _distance(rows, centres[own])
        to_negative = torch.where(found, _distance(rows, centres[negatives.clamp(min=0)]), 0)
        return (self.margin + to_own - to_negative).relu().sum() / max(1, len(rows))

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"margin={self.margin}, r={self.r}, candidates={self.candidates}"
