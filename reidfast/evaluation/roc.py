# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""True positive rate at a false positive rate over all pairs, without keeping or sorting the pairs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from reidfast._shards import Shards, agreement, raise_everywhere, shards_of
from reidfast.evaluation._backends.base import Backend
from reidfast.evaluation._core import plan
from reidfast.evaluation._core.features import FeaturePair
from reidfast.evaluation._core.labels import read_labels
from reidfast.evaluation._core.metrics import Floats
from reidfast.evaluation._core.pairs import Pairs, find_pairs, need_matches

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
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
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
        query_pids: See `rank`.
        gallery_pids: See `rank`.
        query_camids: See `rank`; pairs of one identity and one camera count for neither side.
        gallery_camids: See `rank`.
        metric: See `rank`.
        points: False positive rates in [0, 1].
        group: See `rank`.

    Returns:
        Roc, numpy on the host.

    Raises:
        ValueError: shapes do not fit, a point lies outside [0, 1], or there is no matching pair.
        TypeError: features are not floating point, or labels not integer.

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
    shards = shards_of(op, group)
    with agreement(op, shards) as facts:
        rates = np.atleast_1d(np.asarray(points, np.float64))
        if rates.ndim != 1 or len(rates) == 0 or not ((rates >= 0) & (rates <= 1)).all():
            raise ValueError(f"{op}: expected points to be false positive rates in [0, 1], got {points!r}")
        features = FeaturePair.read(op, query, gallery, shards, metric)
        labels = read_labels(
            op, features.query.n, features.gallery.n, query_pids, gallery_pids, query_camids, gallery_camids
        )
        features.agree_on(facts)
        labels.agree_on(facts)
        facts.add(points=rates.tolist(), backend=plan.serving(features.device.type))
    features.settle_dtype(shards)
    with raise_everywhere(shards):
        backends = plan.choose(op, features.device, wide=features.wide)
        pairs = find_pairs(labels, backends.host)
    need_matches(op, labels, pairs, shards)
    with raise_everywhere(shards):
        own = backends.features.pair_distances(features, pairs, labels.query_pids)[pairs.valid]
    positive = np.sort(shards.concatenate(own).numpy())
    (negatives,) = shards.sum(features.query.n * pairs.columns - len(pairs.column))
    wanted = np.floor(rates * negatives).astype(np.int64)  # negatives allowed below the threshold
    thresholds, below = _order_statistics(backends.features, features, pairs, shards, wanted, negatives)
    accepted = np.searchsorted(positive, thresholds.astype(positive.dtype), "left")
    fpr = below / negatives if negatives else np.zeros(len(rates))
    return Roc(rates, accepted / len(positive), fpr, thresholds, len(positive), negatives)


def _order_statistics(
    backend: Backend, features: FeaturePair, pairs: Pairs, shards: Shards, wanted: NDArray[np.int64], negatives: int
) -> tuple[Floats, NDArray[np.int64]]:
    """The wanted-th (from 0) smallest negative, inf beyond the last, and the number of negatives below it."""
    width = 64 if features.wide else 32
    prefix = np.zeros(len(wanted), np.uint64)
    below = np.zeros(len(wanted), np.int64)
    inside = wanted < negatives
    for done in range(0, width, _BITS):
        distinct = np.unique(prefix[inside])
        if len(distinct) == 0:
            break
        with raise_everywhere(shards):
            counts = backend.histogram(features, pairs, done, torch.from_numpy(distinct.view(np.int64)), _BITS)
        histogram = shards.add(counts).numpy()
        for i in np.flatnonzero(inside):
            ends = np.cumsum(histogram[np.searchsorted(distinct, prefix[i])])
            bin_ = int(np.searchsorted(ends, wanted[i] - below[i], "right"))
            below[i] += ends[bin_ - 1] if bin_ else 0
            prefix[i] = (prefix[i] << np.uint64(_BITS)) | np.uint64(bin_)
    sign = np.uint64(1) << np.uint64(width - 1)
    full = np.uint64((1 << width) - 1)
    bits = np.where(prefix & sign, prefix ^ sign, ~prefix & full)
    value = bits.view(np.float64) if features.wide else bits.astype(np.uint32).view(np.float32).astype(np.float64)
    below[~inside] = negatives
    return np.where(inside, value, np.inf), below
