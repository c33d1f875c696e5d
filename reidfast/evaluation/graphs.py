# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Neighbour graphs, and clustering on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from torch import Tensor

from reidfast.evaluation._inputs import check_count, read_features
from reidfast.evaluation.nearest import search
from reidfast.evaluation.reranking import jaccard_graph

__all__ = ["cluster", "knn_graph"]


def _host(x: Any) -> NDArray[Any]:
    if isinstance(x, Tensor):
        return np.asarray(x.cpu().numpy())
    return np.asarray(x.get() if hasattr(x, "__cuda_array_interface__") else x)


def knn_graph(
    features: Any, k: int, *, metric: str = "cosine", include_self: bool = False, mutual: bool = False
) -> scipy.sparse.csr_matrix:
    """The k nearest neighbours of every item, exactly, as a sparse graph of distances.

    Args:
        features: (N, D), as in `rank`.
        k: Neighbours per item, itself not counted; at most N - 1.
        metric: As in `rank`.
        include_self: Whether the diagonal is stored too (one more entry per row).
        mutual: Keep (i, j) only where j is among the nearest of i and i among those of j.

    Returns:
        csr_matrix (N, N), columns ascending; distances of 0 are stored explicitly, absent means not a neighbour.

    Raises:
        ValueError: k outside 1 .. N - 1, or a feature is NaN or inf.

    Notes:
        Distances and ties are those of `search`. Memory O(N k).

    Example:
        >>> knn_graph(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), 1).indices.tolist()
        [2, 2, 1]
    """
    op = "knn_graph"
    k = check_count(op, "k", k)
    n = read_features(op, "features", features).n
    if k > n - 1:
        raise ValueError(f"{op}: expected k at most N - 1 = {n - 1}, got k={k}")
    distances, indices = (_host(x) for x in search(features, features, k, metric=metric, exclude=np.arange(n)))
    rows = np.repeat(np.arange(n), k)
    columns, values = indices.reshape(-1), distances.reshape(-1)
    if mutual:
        forward, backward = rows * n + columns, columns * n + rows
        keep = np.isin(forward, backward)
        rows, columns, values = rows[keep], columns[keep], values[keep]
    if include_self:
        rows, columns = np.concatenate([rows, np.arange(n)]), np.concatenate([columns, np.arange(n)])
        values = np.concatenate([values, np.zeros(n, values.dtype)])
    order = np.lexsort((columns, rows))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))])
    return scipy.sparse.csr_matrix((values[order], columns[order], indptr), shape=(n, n))


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
