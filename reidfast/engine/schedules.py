# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Learning-rate factors by epoch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence


def warmup_multistep(
    *, warmup: int = 10, start: float = 0.01, milestones: Sequence[int] = (40, 70), gamma: float = 0.1
) -> Callable[[int], float]:
    """Linear warm-up, then steps: the strong baseline's schedule, for ``LambdaLR``.

    The factor of epoch index 0, 1, ...:

        e = index + 1
        factor = start (1 - e / warmup) + e / warmup        for e < warmup
                 gamma^(number of milestones <= e)          from there on

    Luo et al., "Bag of Tricks and A Strong Baseline for Deep Person Re-identification", CVPRW 2019 (epochs counted from
    1, as its code does).

    Args:
        warmup: Epoch from which the full rate holds; 0 = none.
        start: Factor that the warm-up would have at epoch 0.
        milestones: Epochs (from 1) at which the rate falls.
        gamma: By which factor.
    """
    ordered = sorted(milestones)

    def factor(index: int) -> float:
        epoch = index + 1
        if epoch < warmup:
            return start * (1 - epoch / warmup) + epoch / warmup
        return float(gamma ** bisect_right(ordered, epoch))

    return factor
