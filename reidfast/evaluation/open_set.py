# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Open-set identification: how many known people are found at a given rate of false alarms."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from reidfast.evaluation._inputs import check_count, read_features, read_labels
from reidfast.evaluation._pairs import JUNK, find_pairs
from reidfast.evaluation.nearest import search

__all__ = ["OpenSet", "calibrate_threshold", "open_set"]

Floats = NDArray[np.float64]


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


def _host(x: Any) -> NDArray[Any]:
    if isinstance(x, Tensor):
        x = x.detach().cpu()
    return np.asarray(x.get() if hasattr(x, "__cuda_array_interface__") and hasattr(x, "get") else x)


def calibrate_threshold(impostor_distances: Any, far: float) -> float:
    """The largest threshold at which at most a share `far` of the impostor distances lies below it.

    Args:
        impostor_distances: Distances that should be refused, any shape: of unknown people to their nearest gallery row
            for open-set identification, of pairs of different people for verification.
        far: False-alarm rate in [0, 1].

    Returns:
        The (floor(far N) + 1)-th smallest distance; inf where far N >= N. Accept what is strictly below.

    Raises:
        ValueError: no distance, a NaN, or far outside [0, 1].

    Example:
        >>> calibrate_threshold([0.4, 0.1, 0.3, 0.2], 0.25)
        0.2
    """
    op = "calibrate_threshold"
    d = _host(impostor_distances).astype(np.float64).ravel()
    if not 0.0 <= far <= 1.0:
        raise ValueError(f"{op}: expected far in [0, 1], got {far!r}")
    if len(d) == 0 or np.isnan(d).any():
        raise ValueError(f"{op}: expected at least one distance and no NaN, got {len(d)} distances")
    # a hair above the product, so that 0.29 * 100 means 29
    place = int(np.floor(far * len(d) * (1 + 1e-12)))
    return float(np.partition(d, place)[place]) if place < len(d) else float("inf")


def open_set(
    query: Any,
    gallery: Any,
    query_ids: Any,
    gallery_ids: Any,
    query_cameras: Any = None,
    gallery_cameras: Any = None,
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
        query_ids: As in `rank`.
        gallery_ids: As in `rank`; -1 is junk and dropped.
        query_cameras: As in `rank`.
        gallery_cameras: As in `rank`.
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
    labels = read_labels(op, q.n, g.n, query_ids, gallery_ids, query_cameras, gallery_cameras)
    pairs = find_pairs(labels)
    known = pairs.matches > 0
    if not known.any() or known.all():
        kind = "unknown" if known.all() else "known"
        raise ValueError(f"{op}: expected known and unknown queries, got none that is {kind}")
    junk = np.flatnonzero(labels.gallery == JUNK)
    own = pairs.row(pairs.column)
    starts, ends = pairs.ptr[:-1], pairs.ptr[1:]
    hidden = [np.concatenate([own[a:b][~pairs.valid[a:b]], junk]) for a, b in zip(starts, ends, strict=True)]
    k = min(max_rank, g.n)
    distances, rows = (_host(x) for x in search(query, gallery, k, metric=metric, exclude=hidden))
    distances = distances.astype(np.float64)
    alarm = distances[~known, 0]
    match = np.where((labels.gallery[rows] == labels.query[:, None]) & (rows >= 0), distances, np.inf).min(1)[known]
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
