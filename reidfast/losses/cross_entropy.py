# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Cross-entropy over identities, with label smoothing as re-ID uses it."""

from __future__ import annotations

from torch import nn


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Cross-entropy with smoothed labels; torch's own, with re-ID's default.

        q = (1 - eps) onehot(y) + eps / C        the true class included
        L = mean over the batch of -sum_c q_c log softmax(logits)_c

    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016; eps 0.1 as in Luo et al.,
    "Bag of Tricks and A Strong Baseline for Deep Person Re-identification", CVPRW 2019.

    Args:
        label_smoothing: eps in [0, 1]; 0 is plain cross-entropy.
        ignore_index: Label of rows that count for nothing.
    """

    def __init__(self, label_smoothing: float = 0.1, *, ignore_index: int = -1) -> None:
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"CrossEntropyLoss: expected label_smoothing in [0, 1], got {label_smoothing}")
        super().__init__(label_smoothing=label_smoothing, ignore_index=ignore_index)
