# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Jaccard neighbour graphs in memory linear in the number of items."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import scipy.sparse

from reidfast._shards import agreement, raise_everywhere, shards_of
from reidfast.evaluation._core import plan
from reidfast.evaluation._core.features import read_features
from reidfast.evaluation._core.rerank_variants import RerankVariant, resolve_variant
from reidfast.evaluation._core.reranking import (
    RerankSettings,
    agree_on,
    check_ks,
    encode,
    find_neighbours,
    jaccard_arrays,
)


def jaccard_graph(
    features: Any,
    *,
    k1: int = 30,
    k2: int = 6,
    variant: str | RerankVariant = "openunreid",
    metric: str | None = None,
    group: Any = None,
) -> scipy.sparse.csr_matrix:
    """Jaccard distances among all items as a sparse graph, for clustering.

    The J of `rerank` between every pair of one set of features; with the default variant, the distance that OpenUnReID,
    SpCL and cluster-contrast cluster by: k1 nearest items (itself included), weights softmax(-||x - y||^2).

    Args:
        features: (N, D), torch, numpy or cupy.
        k1: Neighbours considered.
        k2: Neighbours averaged in the local query expansion; 1 turns it off.
        variant: As in `rerank`.
        metric: As in `rerank`.
        group: As in `rerank`; every process passes its shard of the features and gets the whole graph.

    Returns:
        csr_matrix float32 (N, N), symmetric up to rounding: every distance below 1, the zero diagonal stored
        explicitly; what is absent has distance 1. ``sklearn.cluster.DBSCAN(metric="precomputed")`` takes it as it is.

    Raises:
        ValueError, TypeError: as `rerank`.

    Notes:
        Memory O(N k1) + the graph; the dense N x N never exists. Independent of the number of threads.

    Example:
        >>> import torch
        >>> graph = jaccard_graph(torch.eye(3).repeat(2, 1), k1=2, k2=1)
        >>> graph.nnz, float(graph[0, 3])
        (12, 0.0)
    """
    op = "jaccard_graph"
    shards = shards_of(op, group)
    with agreement(op, shards) as facts:
        options = resolve_variant(op, variant, metric)
        k1, k2 = check_ks(op, k1, k2)
        rows = read_features(op, "features", features)
        facts.add(D=rows.dim, device=rows.device.type)
        agree_on(facts, options, k1, k2, backend=plan.serving(rows.device.type))
    with raise_everywhere(shards):
        backends = plan.choose(op, rows.device)
        x = rows.matrix()
    x = shards.concatenate(x)
    n = len(x)
    settings = RerankSettings.of(options, k1, k2, n)
    lists = find_neighbours(op, shards, backends, x, x[:0], settings)
    weights = encode(backends, lists, x, x[:0], settings)
    indptr, indices, values = jaccard_arrays(backends, weights, n, 0, settings)
    for i, (first, last) in enumerate(itertools.pairwise(indptr.tolist())):
        diagonal = first + int(
            indices[first:last].searchsorted(np.int32(i))
        )  # an item shares all its weight with itself
        values[diagonal] = 0.0
    graph = scipy.sparse.csr_matrix((values, indices, indptr), shape=(n, n))
    if len(values) and values.max() >= 1.0:  # shared weight below what float32 can tell from none
        keep = values < 1.0
        starts = np.concatenate([[0], np.cumsum(keep)])[indptr]
        graph = scipy.sparse.csr_matrix((values[keep], indices[keep], starts), shape=graph.shape)
    return graph
