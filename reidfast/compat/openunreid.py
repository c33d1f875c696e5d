# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""OpenUnReID's evaluation and distance functions, which SpCL and cluster-contrast share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidfast.compat import _shared
from reidfast.compat._patch import Patcher
from reidfast.compat._shared import re_ranking as re_ranking_cpu
from reidfast.evaluation import rerank

__all__ = [
    "build_dist",
    "compute_cosine_distance",
    "compute_euclidean_distance",
    "compute_jaccard_distance",
    "evaluate_rank",
    "patch",
    "re_ranking_cpu",
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
    cmc_topk: Sequence[int] = (1, 5, 10),
    verbose: bool = True,
) -> tuple[NDArray[np.float32], float]:
    """CMC and mean average precision, printed where `verbose`.

    Other arguments, results and differences: ``reidfast.compat.torchreid.evaluate_rank``.
    """
    cmc, result = _shared.evaluate(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, use_metric_cuhk03)
    if verbose:
        print(f"\n\nMean AP: {result.mean_ap:4.1%}\nCMC Scores:")
        for k in cmc_topk:
            if k <= len(cmc):
                print(f"  top-{k:<4}{cmc[k - 1]:12.1%}")
    return cmc, result.mean_ap


@torch.no_grad()
def build_dist(
    cfg: Any, feat_1: Tensor, feat_2: Tensor | None = None, dist_m: str | None = None, verbose: bool = False
) -> NDArray[np.floating]:
    """Distances (M, N), or (M, M) without feat_2, as numpy: "euclidean" (squared), "cosine" or "jaccard".

    Args:
        cfg: Object with `dist_metric`, `dist_cuda`, and for "jaccard" `k1`, `k2`, `search_type`.
        feat_1: (M, D).
        feat_2: (N, D).
        dist_m: Overrides ``cfg.dist_metric``.
        verbose: Accepted and ignored.
    """
    metric = cfg.dist_metric if dist_m is None else dist_m
    if metric == "euclidean":
        return compute_euclidean_distance(feat_1, feat_2, cfg.dist_cuda)
    if metric == "cosine":
        return compute_cosine_distance(feat_1, feat_2, cfg.dist_cuda)
    if metric != "jaccard":
        raise ValueError(f"build_dist: expected dist_m 'euclidean', 'cosine' or 'jaccard', got {metric!r}")
    if feat_2 is None:
        return compute_jaccard_distance(feat_1, cfg.k1, cfg.k2, cfg.search_type, verbose=verbose)
    result = rerank(feat_1, feat_2, k1=cfg.k1, k2=cfg.k2, lambda_=0, variant="openunreid")
    return np.asarray(result.dense().cpu().numpy())


def compute_jaccard_distance(
    features: Tensor, k1: int = 20, k2: int = 6, search_option: int = 0, fp16: bool = False, verbose: bool = True
) -> NDArray[np.floating]:
    """Jaccard distances (N, N) as numpy float32, float16 with fp16.

    ``reidfast.evaluation.jaccard_graph`` is the same without the dense matrix, and goes into DBSCAN as it is.
    `search_option` and `verbose` are accepted and make no difference.
    """
    return _shared.dense_jaccard("compute_jaccard_distance", features, k1, k2, search_option, fp16)


def _pair(features: Tensor, others: Tensor | None, cuda: bool) -> tuple[Tensor, Tensor]:
    x = features.cuda() if cuda else features
    return x, x if others is None else others.to(x.device)


@torch.no_grad()
def compute_euclidean_distance(
    features: Tensor, others: Tensor | None = None, cuda: bool = False
) -> NDArray[np.floating]:
    """Squared Euclidean distances as numpy, among `features` themselves without `others`.

    OpenUnReID's own shortcut for the second case takes 2 |x_i|^2 for |x_i|^2 + |x_j|^2, right for unit rows only; here
    it is right for all.
    """
    return np.asarray(_shared.square_distances(*_pair(features, others, cuda)).cpu().numpy())


@torch.no_grad()
def compute_cosine_distance(features: Tensor, others: Tensor | None = None, cuda: bool = False) -> NDArray[np.floating]:
    """1 - cos as numpy, among `features` themselves without `others`."""
    return np.asarray(_shared.cosine_distances(*_pair(features, others, cuda)).cpu().numpy())


_PATCHER = Patcher(
    "openunreid",
    {
        ("core.metrics.rank", "evaluate_rank"): evaluate_rank,
        ("core.utils.rerank", "re_ranking_cpu"): re_ranking_cpu,
        ("core.utils.compute_dist", "build_dist"): build_dist,
        ("core.utils.compute_dist", "compute_jaccard_distance"): compute_jaccard_distance,
        ("core.utils.compute_dist", "compute_euclidean_distance"): compute_euclidean_distance,
        ("core.utils.compute_dist", "compute_cosine_distance"): compute_cosine_distance,
    },
)
patch, unpatch = _PATCHER.patch, _PATCHER.unpatch
