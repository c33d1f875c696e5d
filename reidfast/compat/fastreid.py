# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""fast-reid's evaluation functions: names, argument order, defaults and return types of fastreid 1.4."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidfast.compat import _shared
from reidfast.compat._patch import Patcher
from reidfast.compat._shared import re_ranking
from reidfast.evaluation import rerank, search

__all__ = [
    "aqe",
    "build_dist",
    "compute_cosine_distance",
    "compute_euclidean_distance",
    "compute_jaccard_distance",
    "evaluate_rank",
    "patch",
    "re_ranking",
    "unpatch",
]


def evaluate_rank(
    distmat: Any,
    q_pids: Any,
    g_pids: Any,
    q_camids: Any,
    g_camids: Any,
    max_rank: int = 50,
    use_metric_cuhk03: bool = False,
    use_cython: bool = True,
) -> tuple[NDArray[np.float32], Any, Any]:
    """CMC, and average precision and INP of every valid query.

    Arguments as ``reidfast.compat.torchreid.evaluate_rank``.

    Returns:
        (cmc float32 (min(max_rank, G),), all_AP, all_INP) over the valid queries: float32 arrays as from fast-reid's
        compiled code with use_cython, else lists of floats as from its Python code. The cuhk03 rule returns three
        values too, where fast-reid's code returns two that its own evaluator cannot unpack.

    Raises:
        ValueError: no query has a match (fast-reid: AssertionError).
    """
    cmc, result = _shared.evaluate(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, use_metric_cuhk03)
    ap, inp = result.ap[result.valid], result.inp[result.valid]
    if use_cython:
        return cmc, ap.astype(np.float32), inp.astype(np.float32)
    return cmc, ap.tolist(), inp.tolist()


@torch.no_grad()
def build_dist(feat_1: Tensor, feat_2: Tensor, metric: str = "euclidean", **kwargs: Any) -> NDArray[np.float32]:
    """Distances (M, N) as numpy: "euclidean" (squared), "cosine", or "jaccard" with k1= and k2=.

    "jaccard" is ``reidfast.evaluation.rerank(variant="fastreid", lambda_=0)``: no matrix of all pairs is made.
    """
    if metric == "euclidean":
        return compute_euclidean_distance(feat_1, feat_2)
    if metric == "cosine":
        return compute_cosine_distance(feat_1, feat_2)
    if metric != "jaccard":
        raise ValueError(f"build_dist: expected metric 'cosine', 'euclidean' or 'jaccard', got {metric!r}")
    missing = [name for name in ("k1", "k2") if name not in kwargs]
    if missing:
        raise TypeError(f"build_dist: expected {' and '.join(missing)} beside metric 'jaccard'")
    k1, k2 = kwargs["k1"], kwargs["k2"]
    result = rerank(feat_1, feat_2, k1=k1, k2=k2, lambda_=0, variant="fastreid", metric="sqeuclidean")
    return np.asarray(result.dense().cpu().numpy())


def compute_jaccard_distance(
    features: Tensor, k1: int = 20, k2: int = 6, search_option: int = 0, fp16: bool = False
) -> NDArray[np.floating]:
    """Jaccard distances (N, N) as numpy float32, float16 with fp16.

    ``reidfast.evaluation.jaccard_graph`` is the same without the dense matrix. `search_option` (which faiss search) is
    accepted and makes no difference: neighbours are exact, and features stay where they are.
    """
    return _shared.dense_jaccard("compute_jaccard_distance", features, k1, k2, search_option, fp16)


@torch.no_grad()
def compute_euclidean_distance(features: Tensor, others: Tensor) -> NDArray[np.float32]:
    """Squared Euclidean distances (M, N) as numpy."""
    return np.asarray(_shared.square_distances(features, others).cpu().numpy())


@torch.no_grad()
def compute_cosine_distance(features: Tensor, others: Tensor) -> NDArray[np.float32]:
    """1 - cos (M, N) as numpy."""
    return np.asarray(_shared.cosine_distances(features, others).cpu().numpy())


@torch.no_grad()
def aqe(
    query_feat: Tensor, gallery_feat: Tensor, qe_times: int = 1, qe_k: int = 10, alpha: float = 3.0
) -> tuple[Tensor, Tensor]:
    """fast-reid's query expansion: every item becomes the mean of cos^alpha x over its qe_k nearest, itself included.

    Queries and gallery expand together and are not scaled to unit length. ``reidfast.evaluation.query_expansion`` and
    ``database_augmentation`` are the published forms.
    """
    x = torch.cat((query_feat, gallery_feat)).cpu().float()
    for _ in range(qe_times):
        distances, nearest = search(x, x, min(qe_k, len(x)))
        weights = (1 - distances) ** alpha
        total = torch.zeros_like(x)
        for j in range(nearest.shape[1]):
            total += weights[:, j, None] * x[nearest[:, j]]
        x = total / nearest.shape[1]
    return x[: len(query_feat)], x[len(query_feat) :]


_PATCHER = Patcher(
    "fastreid",
    {
        ("evaluation.rank", "evaluate_rank"): evaluate_rank,
        ("evaluation.rerank", "re_ranking"): re_ranking,
        ("evaluation.query_expansion", "aqe"): aqe,
        ("utils.compute_dist", "build_dist"): build_dist,
        ("utils.compute_dist", "compute_jaccard_distance"): compute_jaccard_distance,
        ("utils.compute_dist", "compute_euclidean_distance"): compute_euclidean_distance,
        ("utils.compute_dist", "compute_cosine_distance"): compute_cosine_distance,
    },
)
patch, unpatch = _PATCHER.patch, _PATCHER.unpatch
