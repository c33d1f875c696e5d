# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""True positive rate at a false positive rate over all pairs, without keeping or sorting the pairs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from reidfast.evaluation import _engine
from reidfast.evaluation._distances import Problem, csr_slice, tensor, together
from reidfast.evaluation._groups import Solo, ranks_of
from reidfast.evaluation._inputs import read_labels
from reidfast.evaluation._metrics import Floats
from reidfast.evaluation._pairs import Pairs, find_pairs
from reidfast.evaluation.ranking import _need_matches

_BITS = 16  # of the distance's integer, settled per pass


class Roc(NamedTuple):
    """True positive rates at false positive rates.

    Attributes:
        points: float64 (n,), the false positive rates asked for.
        tpr: float64 (n,), share of matching pairs with d < threshold.
        fpr: float64 (n,), share of other pairs with d < threshold; the largest not above its point.
        thresholds: float64 (n,), accept a pair when its distance is below this.
        positives: Number of matching pairs.
        negatives: Number of other pairs.
    """

    points: Floats
    tpr: Floats
    fpr: Floats
    thresholds: Floats
    positives: int
    negatives: int


def roc(
    query: Any,
    gallery: Any,
    query_ids: Any,
    gallery_ids: Any,
    query_cameras: Any = None,
    gallery_cameras: Any = None,
    *,
    metric: str = "cosine",
    points: Any = (1e-4, 1e-3, 1e-2, 1e-1),
    group: Any = None,
) -> Roc:
    """Exact points of the ROC curve over all query-gallery pairs.

    Of N pairs of different identities, the threshold at rate f is the (floor(f N) + 1)-th smallest of their distances;
    pairs with a strictly smaller distance are accepted. It is found by its bits, 16 a pass: nothing is kept per pair.

    Args:
        query: See `rank`.
        gallery: See `rank`.
        query_ids: See `rank`.
        gallery_ids: See `rank`.
        query_cameras: See `rank`; pairs of one identity and one camera count for neither side.
        gallery_cameras: See `rank`.
        metric: See `rank`.
        points: False positive rates in [0, 1].
        group: See `rank`.

    Returns:
        Roc, numpy on the host.

    Raises:
        ValueError: shapes do not fit, a point lies outside [0, 1], or there is no matching pair.
        TypeError: features are not floating point, or ids not integer.

    Notes:
        Every query counts, also one without a match. Ties fall on the side of rejection. Two passes over the distances
        in float32, four in float64. Memory: O(Q P) and half a megabyte per point and thread.

    Example:
        >>> import numpy as np
        >>> x = np.eye(2, dtype=np.float32)
        >>> roc(x, x, [0, 1], [0, 1], points=[0.5]).tpr
        array([1.])
    """
    op = "roc"
    ranks = ranks_of(op, group)
    rates = np.atleast_1d(np.asarray(points, np.float64))
    if rates.ndim != 1 or len(rates) == 0 or not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"{op}: expected points to be false positive rates in [0, 1], got {points!r}")
    with together(ranks):
        problem = Problem.read(op, query, gallery, metric, ranks, False)
        labels = read_labels(
            op, problem.query.n, problem.gallery.n, query_ids, gallery_ids, query_cameras, gallery_cameras
        )
        pairs = find_pairs(labels)
    _need_matches(op, labels, pairs, ranks)
    with together(ranks):
        mine = problem.pair_distances(pairs, labels.query)[pairs.valid]
    positive = np.sort(ranks.concatenate(mine))
    local = len(labels.query) * pairs.columns - len(pairs.column)
    negatives = int(ranks.add(np.array([local], np.int64))[0])
    wanted = np.floor(rates * negatives).astype(np.int64)  # negatives allowed below the threshold
    thresholds, below = _order_statistics(problem, pairs, ranks, wanted, negatives)
    accepted = np.searchsorted(positive, thresholds.astype(positive.dtype), "left")
    fpr = below / negatives if negatives else np.zeros(len(rates))
    return Roc(rates, accepted / len(positive), fpr, thresholds, len(positive), negatives)


def _order_statistics(
    problem: Problem, pairs: Pairs, ranks: Solo, wanted: NDArray[np.int64], negatives: int
) -> tuple[Floats, NDArray[np.int64]]:
    """The wanted-th (from 0) smallest negative, inf beyond the last, and the number of negatives below it."""
    width = 64 if problem.wide else 32
    prefix = np.zeros(len(wanted), np.uint64)
    below = np.zeros(len(wanted), np.int64)
    inside = wanted < negatives
    for done in range(0, width, _BITS):
        distinct = np.unique(prefix[inside])
        with together(ranks):
            histogram = ranks.add(_histogram(problem, pairs, ranks, done, distinct)) if len(distinct) else None
        for i in np.flatnonzero(inside):
            assert histogram is not None
            ends = np.cumsum(histogram[np.searchsorted(distinct, prefix[i])])
            bin_ = int(np.searchsorted(ends, wanted[i] - below[i], "right"))
            below[i] += ends[bin_ - 1] if bin_ else 0
            prefix[i] = (prefix[i] << np.uint64(_BITS)) | np.uint64(bin_)
    sign = np.uint64(1) << np.uint64(width - 1)
    full = np.uint64((1 << width) - 1)
    bits = np.where(prefix & sign, prefix ^ sign, ~prefix & full)
    value = bits.view(np.float64) if problem.wide else bits.astype(np.uint32).view(np.float32).astype(np.float64)
    below[~inside] = negatives
    return np.where(inside, value, np.inf), below


def _histogram(
    problem: Problem, pairs: Pairs, ranks: Solo, done: int, prefixes: NDArray[np.uint64]
) -> NDArray[np.int64]:
    histogram = torch.zeros(len(prefixes), 1 << _BITS, dtype=torch.int64)
    for q0, query in problem.query_chunks():
        ptr, entries = csr_slice(pairs.ptr, q0, q0 + len(query))
        same = tensor(pairs.column[entries])
        for g0, first, gallery, rows in problem.columns(pairs):
            status = _engine.HISTOGRAM_FEATURES.on[problem.device](
                query, gallery, rows, problem.metric, first, ptr, same, done, tensor(prefixes.view(np.int64)), _BITS,
                histogram,
            )  # fmt: skip
            problem.check(status, q0, g0)
    return histogram.numpy()
