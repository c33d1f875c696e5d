# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Open-set identification: how many known people are found at a given rate of false alarms."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from reidfast._arrays import to_numpy
from reidfast.evaluation._core.features import read_features
from reidfast.evaluation._core.labels import JUNK, read_labels
from reidfast.evaluation._core.metrics import Floats
from reidfast.evaluation._core.options import check_count
from reidfast.evaluation._core.pairs import find_pairs
from reidfast.evaluation._core.plan import host_backend
from reidfast.evaluation.calibrate_threshold import calibrate_threshold
from reidfast.evaluation.search import search


class OpenSet(NamedTuple):
    """Detection and identification rates at false-alarm rates.

    Attributes:
        points: float64 (n,), the false-alarm rates asked for.
        dir: float64 (n,), share of known queries with a match among their max_rank nearest rows, that match closer than
            the threshold.
        far: float64 (n,), share of unknown queries with any row closer than the threshold; the largest not above its
            point.
        thresholds: float64 (n,), an answer counts when its distance is below this.
        known: Queries with a match in the gallery.
        unknown: Queries without.
        closed_set: dir without a threshold: the identification rate of the known queries at max_rank.
    """

    points: Floats
    dir: Floats
    far: Floats
    thresholds: Floats
    known: int
    unknown: int
    closed_set: float


def open_set(
    query: Any,
    gallery: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
    *,
    metric: str = "cosine",
    points: Any = (0.01, 0.1),
    max_rank: int = 1,
) -> OpenSet:
    """Detection-and-identification rate at false-alarm rates: queries may show people that the gallery does not know.

        FAR(t) = share of unknown queries with min_g d(q, g) < t
        DIR(t) = share of known queries with a match g of rank <= max_rank and d(q, g) < t

    Phillips, Grother, Micheals, "Evaluation Methods in Face Recognition", Handbook of Face Recognition (2005). A query
    is known when a gallery row of its identity counts for it; with cameras, rows of its own identity and camera do not.

    Args:
        query: As in `rank`.
        gallery: As in `rank`.
        query_pids: As in `rank`.
        gallery_pids: As in `rank`; -1 is junk and dropped.
        query_camids: As in `rank`.
        gallery_camids: As in `rank`.
        metric: As in `rank`.
        points: False-alarm rates in [0, 1].
        max_rank: A match counts up to this rank.

    Returns:
        OpenSet, numpy on the host.

    Raises:
        ValueError: no known or no unknown query, a point outside [0, 1], or as `rank`.

    Notes:
        Distances and ties are those of `search`; nothing of size Q x G. Ties with the threshold are refused.

    Example:
        >>> x = np.eye(3, dtype=np.float32)
        >>> open_set(x, x[:2], [0, 1, 2], [0, 1], points=[0.0]).dir
        array([1.])
    """
    op = "open_set"
    max_rank = check_count(op, "max_rank", max_rank)
    rates = np.atleast_1d(np.asarray(points, np.float64))
    if rates.ndim != 1 or not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"{op}: expected points in [0, 1], got {points!r}")
    q, g = read_features(op, "query", query), read_features(op, "gallery", gallery)
    labels = read_labels(op, q.n, g.n, query_pids, gallery_pids, query_camids, gallery_camids)
    pairs = find_pairs(labels, host_backend(op))
    known = (pairs.matches > 0).numpy()
    if not known.any() or known.all():
        kind = "unknown" if known.all() else "known"
        raise ValueError(f"{op}: expected known and unknown queries, got none that is {kind}")
    query_labels, gallery_labels = labels.query_pids.numpy(), labels.gallery_pids.numpy()
    junk = np.flatnonzero(gallery_labels == JUNK)
    own, seen = pairs.row(pairs.column).numpy(), ~pairs.valid.numpy()
    starts, ends = pairs.ptr[:-1].tolist(), pairs.ptr[1:].tolist()
    hidden = [np.concatenate([own[a:b][seen[a:b]], junk]) for a, b in zip(starts, ends, strict=True)]
    k = min(max_rank, g.n)
    distances, rows = (to_numpy(x) for x in search(query, gallery, k, metric=metric, exclude=hidden))
    distances = distances.astype(np.float64)
    alarm = distances[~known, 0]
    hits = (gallery_labels[rows] == query_labels[:, None]) & (rows >= 0)
    match = np.where(hits, distances, np.inf).min(1)[known]
    thresholds = np.array([calibrate_threshold(alarm, rate) for rate in rates])
    return OpenSet(
        points=rates,
        dir=(match[None] < thresholds[:, None]).mean(1),
        far=(alarm[None] < thresholds[:, None]).mean(1),
        thresholds=thresholds,
        known=int(known.sum()),
        unknown=int((~known).sum()),
        closed_set=float(np.isfinite(match).mean()),
    )
