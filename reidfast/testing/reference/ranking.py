# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The evaluation rules as a loop over queries with a stable sort of every row: slow, short, and the truth in tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reidfast.evaluation._core.metrics import PROTOCOLS, Ranking


def average_precision(hits: NDArray[np.bool_], distances: NDArray[Any], kind: str) -> float:
    """Average precision of one ranked list: ``hits`` marks the matches, ``distances`` ascend."""
    matches = np.cumsum(hits)
    precision = matches / np.arange(1, len(hits) + 1)
    total = matches[-1]
    if kind == "step":
        return float(precision[hits].sum() / total)
    if kind == "trapezoid":
        earlier = np.r_[1.0, precision[:-1]]
        return float(((earlier + precision) / 2)[hits].sum() / total)
    ends = np.flatnonzero(np.r_[distances[1:] != distances[:-1], True])  # last of every group of equal distances
    recall, precision = np.r_[0.0, matches[ends] / total], np.r_[1.0, precision[ends]]
    return float((np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum())


def single_shot_curve(
    order: NDArray[Any], same: NDArray[np.bool_], pids: NDArray[Any], max_rank: int
) -> NDArray[np.float64]:
    """Expected CMC when one image per identity is drawn: ``order`` is the ranked gallery, ``same`` its matches."""
    curves = []
    for match in np.flatnonzero(same):
        chances = np.zeros(max_rank)
        chances[0] = 1.0
        others = pids[order[~same]]
        for pid in np.unique(others):
            images = (pids[order] == pid) & ~same
            p = images[:match].sum() / images.sum()
            chances = chances * (1 - p) + np.r_[0.0, chances[:-1]] * p
        curves.append(np.cumsum(chances))
    return np.mean(curves, axis=0)


def rank_distances(
    distances: NDArray[Any],
    query_pids: NDArray[Any],
    gallery_pids: NDArray[Any],
    query_camids: NDArray[Any] | None = None,
    gallery_camids: NDArray[Any] | None = None,
    *,
    protocol: str = "market1501",
    average_precision_kind: str | None = None,
    max_rank: int = 50,
) -> Ranking:
    """`reidfast.evaluation.rank_distances` by brute force."""
    rule = PROTOCOLS[protocol]
    kind = average_precision_kind or rule.average_precision
    n = len(distances)
    ap, inp = np.full(n, np.nan), np.full(n, np.nan)
    worst, best = np.full(n, np.nan), np.full(n, np.nan)
    first = np.full(n, -1, np.int64)
    curves = np.full((n, max_rank), np.nan)
    for q in range(n):
        drop = gallery_pids == -1
        if query_camids is not None and gallery_camids is not None:
            drop = drop | ((gallery_pids == query_pids[q]) & (gallery_camids == query_camids[q]))
        columns = np.flatnonzero(~drop)
        d, same = distances[q, columns], gallery_pids[columns] == query_pids[q]
        if not same.any():
            continue
        by_index = np.argsort(d, kind="stable")
        ap[q] = average_precision(same[by_index], d[by_index], kind)
        for values, key in ((worst, same), (best, ~same)):
            order = np.lexsort((key, d))
            values[q] = average_precision(same[order], d[order], kind)
        ranks = np.flatnonzero(same[by_index]) + 1
        first[q], inp[q] = ranks[0], len(ranks) / ranks[-1]
        if rule.single_shot:
            curves[q] = single_shot_curve(columns[by_index], same[by_index], gallery_pids, max_rank)
        else:
            curves[q] = np.arange(1, max_rank + 1) >= ranks[0]
    valid = first > 0
    return Ranking(
        curves[valid].mean(0), float(ap[valid].mean()), float(inp[valid].mean()), ap, inp, first, valid,
        np.flatnonzero(~valid), (float(worst[valid].mean()), float(best[valid].mean())),
    )  # fmt: skip
