# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Is one result better than another, or was it luck of the draw?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Difference", "paired_bootstrap"]


class Difference(NamedTuple):
    """How two results differ on the same queries.

    Attributes:
        mean: Mean of b - a over the queries that both can answer.
        low: Lower end of the interval.
        high: Upper end.
        error: Standard deviation of the difference over the draws.
        p_value: Two-sided: twice the share of draws on the other side of zero (draws at zero count half), at most 1.
        queries: How many queries were compared.
        identities: Number of persons behind the queries.
    """

    mean: float
    low: float
    high: float
    error: float
    p_value: float
    queries: int
    identities: int


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, pids: ArrayLike, *, draws: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """Bootstrap of the mean difference b - a, in which whole identities are drawn.

    Queries of one person resemble each other, so persons are drawn with replacement and bring all their queries; both
    results are read off the same draw (Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 16).

    Args:
        a: Score of each query (Q,), NaN where it has none: average precision, or 1 and 0 for rank-1.
        b: The same for the other result.
        pids: Identity of each query (Q,).
        draws: Number of draws.
        confidence: Confidence level of the interval (percentiles).
        seed: Seed of the draws.

    Raises:
        ValueError: Lengths that differ, or nothing to compare.
    """
    first, second, who = np.asarray(a, np.float64), np.asarray(b, np.float64), np.asarray(pids)
    if first.ndim != 1 or first.shape != second.shape or first.shape != who.shape:
        raise ValueError(
            f"paired_bootstrap: expected a, b and pids of one length, got {first.shape}, {second.shape}, {who.shape}"
        )
    valid = np.isfinite(first) & np.isfinite(second)
    if not valid.any():
        raise ValueError("paired_bootstrap: expected at least one query that both results answer, got none")
    if draws < 1 or not 0 < confidence < 1:
        raise ValueError(f"paired_bootstrap: expected draws >= 1, 0 < confidence < 1, got {draws} and {confidence}")
    people, index = np.unique(who[valid], return_inverse=True)
    total = np.bincount(index, (second - first)[valid], len(people))
    count = np.bincount(index, minlength=len(people)).astype(np.float64)
    rng = np.random.Generator(np.random.Philox(seed))
    means = np.empty(draws)
    for start in range(0, draws, 256):
        rows = min(256, draws - start)
        times = _times_drawn(rng, rows, len(people))
        means[start : start + rows] = (times @ total) / (times @ count)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    below = (means < 0).mean() + (means == 0).mean() / 2
    return Difference(
        float(total.sum() / count.sum()),
        float(low),
        float(high),
        float(means.std()),
        float(min(1.0, 2 * min(below, 1 - below))),
        int(valid.sum()),
        len(people),
    )


def _times_drawn(rng: np.random.Generator, rows: int, people: int) -> NDArray[np.float64]:
    drawn = rng.integers(0, people, (rows, people)) + people * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * people).reshape(rows, people).astype(np.float64)
