# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Pseudo-labels by clustering."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from reidfast.evaluation.jaccard_graph import jaccard_graph


def cluster(
    features: Any,
    *,
    eps: float = 0.6,
    min_samples: int = 4,
    k1: int = 30,
    k2: int = 6,
    variant: str = "openunreid",
    metric: str | None = None,
) -> NDArray[np.int64]:
    """Pseudo-labels: DBSCAN on Jaccard distances, the clustering step of SpCL, cluster-contrast and OpenUnReID.

    Args:
        features: (N, D), or a sparse graph of distances that is already there (`jaccard_graph`).
        eps: Largest distance between neighbours, below 1.
        min_samples: Items within eps (itself included) that make a core item.
        k1: As in `jaccard_graph`.
        k2: As in `jaccard_graph`.
        variant: As in `jaccard_graph`.
        metric: As in `jaccard_graph`.

    Returns:
        int64 (N,): cluster of each item, numbered 0, 1, ... in order of their first core items; -1 = outlier.

    Raises:
        ValueError: eps outside (0, 1): pairs at distance 1 are not stored.
        RuntimeError: scikit-learn is not installed.

    Notes:
        Same labels as DBSCAN on the dense matrix. Memory: the sparse graph.
    """
    op = "cluster"
    if not 0.0 < eps < 1.0:
        raise ValueError(f"{op}: expected eps in (0, 1), since distances of 1 are not stored, got {eps!r}")
    try:
        from sklearn.cluster import DBSCAN
    except ImportError:
        raise RuntimeError(f'{op}: needs scikit-learn; pip install "reidfast[train]"') from None
    if scipy.sparse.issparse(features):
        graph = features.tocsr()
    else:
        graph = jaccard_graph(features, k1=k1, k2=k2, variant=variant, metric=metric)
    if graph.shape[0] == 0:
        return np.empty(0, np.int64)
    labels = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(graph)
    return np.asarray(labels, dtype=np.int64)
