# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Neighbour graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from reidfast._arrays import to_numpy
from reidfast.evaluation._core.features import read_features
from reidfast.evaluation._core.options import check_count
from reidfast.evaluation.search import search


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
        >>> import numpy as np
        >>> knn_graph(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), 1).indices.tolist()
        [2, 2, 1]
    """
    op = "knn_graph"
    k = check_count(op, "k", k)
    n = read_features(op, "features", features).n
    if k > n - 1:
        raise ValueError(f"{op}: expected k at most N - 1 = {n - 1}, got k={k}")
    distances, indices = (to_numpy(x) for x in search(features, features, k, metric=metric, exclude=np.arange(n)))
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
