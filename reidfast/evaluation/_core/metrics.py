# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""From counts to CMC, average precision and INP: numpy on the matches alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
AP_RULES = ("step", "trapezoid", "sklearn")


class Protocol(NamedTuple):
    """How an evaluation scores: the average precision it reports, and whether CMC draws one image per identity."""

    average_precision: str
    single_shot: bool = False


PROTOCOLS = {
    "market1501": Protocol("step"),
    "cuhk03": Protocol("step", single_shot=True),
    "mars": Protocol("trapezoid"),
    "mars_torchreid": Protocol("step"),
}


class Ranking(NamedTuple):
    """Scores of an evaluation, numpy on the host whatever came in.

    Attributes:
        cmc: float64 (max_rank,), fractions of the valid queries; ``cmc[0]`` is rank-1, the last value is carried on.
        mean_ap: Mean of ``ap`` over the valid queries.
        mean_inp: Mean of ``inp`` over the valid queries.
        ap: float64 (Q,), average precision; NaN for skipped queries.
        inp: float64 (Q,), inverse negative penalty: matches / rank of the last; NaN for skipped queries.
        first_match: int64 (Q,), rank of the first match, from 1; -1 for skipped queries.
        valid: bool (Q,), whether a query has a match that counts.
        skipped: int64, indices of the queries that have none.
        bounds: (worst, best) mean average precision over all orders of tied distances; equal without ties.
        ambiguous: With ``precision="certified"``, the share of the pairs of query and non-match that the low-precision
            pass could not decide and the float32 routine did; else 0.
    """

    cmc: Floats
    mean_ap: float
    mean_inp: float
    ap: Floats
    inp: Floats
    first_match: Ints
    valid: NDArray[np.bool_]
    skipped: Ints
    bounds: tuple[float, float]
    ambiguous: float = 0.0


class Counted(NamedTuple):
    """Valid matches sorted by (query, distance, column), with the non-matches around each: host tensors [n]."""

    query: Tensor
    distance: Tensor
    below: Tensor  # non-matches closer
    equal: Tensor  # non-matches as far
    before: Tensor  # those of them at a lower column


@dataclass
class _Matches:
    """The same in numpy."""

    queries: int
    query: Ints
    distance: NDArray[np.floating]
    below: Ints
    equal: Ints
    before: Ints

    @property
    def ptr(self) -> Ints:
        return _offsets(np.bincount(self.query, minlength=self.queries))

    def place(self) -> Ints:
        """1-based place of each match among the matches of its query."""
        return np.arange(1, len(self.query) + 1) - self.ptr[self.query]


def _offsets(counts: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _sum_per_query(values: Floats, ptr: Ints) -> Floats:
    filled = np.flatnonzero(np.diff(ptr) > 0)
    out = np.full(len(ptr) - 1, np.nan)
    if len(filled):
        out[filled] = np.add.reduceat(values, ptr[filled])
    return out


def _ap_from_ranks(rule: str, place: Ints, rank: Ints, ptr: Ints) -> Floats:
    precision = place / rank
    if rule == "trapezoid":
        earlier = np.divide(place - 1, rank - 1, out=np.ones(len(rank)), where=rank > 1)
        precision = (earlier + precision) / 2
    return _sum_per_query(precision, ptr) / np.maximum(np.diff(ptr), 1)


def _ap_grouped(counted: _Matches, place: Ints) -> Floats:
    """Area under the precision-recall curve with one point per distinct distance, as scikit-learn draws it."""
    ptr = counted.ptr
    n = len(place)
    if n == 0:
        return np.full(counted.queries, np.nan)
    starts = np.r_[True, (counted.query[1:] != counted.query[:-1]) | (counted.distance[1:] != counted.distance[:-1])]
    first = np.flatnonzero(starts)
    hits = np.diff(np.r_[first, n])
    earlier = place[first] - 1
    misses, misses_after = counted.below[first], counted.below[first] + counted.equal[first]
    before = np.divide(earlier, earlier + misses, out=np.ones(len(first)), where=earlier + misses > 0)
    after = (earlier + hits) / (earlier + hits + misses_after)
    group_ptr = _offsets(np.bincount(counted.query[first], minlength=counted.queries))
    return _sum_per_query(hits * (before + after) / 2, group_ptr) / np.maximum(np.diff(ptr), 1)


def score(queries: int, counts: Counted, rule: str, max_rank: int, shot_curves: Tensor | None = None) -> Ranking:
    """Ranking from counts; ``shot_curves`` [Q, max_rank] replace the first-match curve."""
    counted = _Matches(queries, *(x.numpy() for x in counts))
    ptr = counted.ptr
    matches = np.diff(ptr)
    valid = matches > 0
    place = counted.place()
    rank = place + counted.below + counted.before
    best_rank, worst_rank = place + counted.below, place + counted.below + counted.equal
    if rule == "sklearn":
        ap = _ap_grouped(counted, place)
        mean_ap = float(ap[valid].mean())
        bounds = (mean_ap, mean_ap)
    else:
        ap = _ap_from_ranks(rule, place, rank, ptr)
        mean_ap = float(ap[valid].mean())
        if counted.equal.any():
            worst, best = (_ap_from_ranks(rule, place, r, ptr)[valid].mean() for r in (worst_rank, best_rank))
            bounds = (float(worst), float(best))
        else:
            bounds = (mean_ap, mean_ap)
    first_match = np.full(counted.queries, -1, np.int64)
    first_match[valid] = rank[ptr[:-1][valid]]
    inp = np.full(counted.queries, np.nan)
    inp[valid] = matches[valid] / rank[ptr[1:][valid] - 1]
    if shot_curves is None:
        hits = np.bincount(np.minimum(first_match[valid], max_rank + 1), minlength=max_rank + 2)[1 : max_rank + 1]
        cmc = np.cumsum(hits) / valid.sum()
    else:
        cmc = shot_curves.numpy()[valid].mean(0)
    skipped = np.flatnonzero(~valid).astype(np.int64)
    return Ranking(cmc, mean_ap, float(inp[valid].mean()), ap, inp, first_match, valid, skipped, bounds)
