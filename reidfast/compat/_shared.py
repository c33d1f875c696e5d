# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What the three packages have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidfast.evaluation import Ranking, jaccard_graph, rank_distances, rerank_distances


def evaluate(
    distmat: Any,
    q_pids: Any,
    g_pids: Any,
    q_camids: Any,
    g_camids: Any,
    max_rank: int,
    use_metric_cuhk03: bool,
) -> tuple[NDArray[np.float32], Ranking]:
    """CMC float32 [min(max_rank, G)] as the packages return it, and everything else."""
    distances = distmat if isinstance(distmat, (np.ndarray, Tensor)) else np.asarray(distmat)
    if distances.ndim == 2:
        max_rank = min(max_rank, max(1, int(distances.shape[1])))
    protocol = "cuhk03" if use_metric_cuhk03 else "market1501"
    result = rank_distances(distances, q_pids, g_pids, q_camids, g_camids, protocol=protocol, max_rank=max_rank)
    return result.cmc.astype(np.float32), result


def square_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x|^2 + |y|^2 - 2 x.y, in the dtype and on the device of x."""
    squares = x.square().sum(1, keepdim=True) + y.square().sum(1)
    return torch.addmm(squares, x, y.T, alpha=-2)


def cosine_distances(x: Tensor, y: Tensor) -> Tensor:
    """1 - cos."""
    x, y = (torch.nn.functional.normalize(z, p=2, dim=1) for z in (x, y))
    return 1 - x @ y.T


def re_ranking(
    q_g_dist: Any, q_q_dist: Any, g_g_dist: Any, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> NDArray[np.float32]:
    """k-reciprocal re-ranking of distances, which are squared first.

    ``reidfast.evaluation.rerank_distances`` with variant "torchreid"; ``reidfast.evaluation.rerank`` takes features and
    needs none of the three matrices.

    Returns:
        numpy float32 (Q, G).
    """
    blocks = (np.asarray(d) for d in (q_g_dist, q_q_dist, g_g_dist))
    return np.asarray(rerank_distances(*blocks, k1=k1, k2=k2, lambda_=lambda_value, variant="torchreid").dense())


def dense_jaccard(op: str, features: Any, k1: int, k2: int, search_option: Any, fp16: bool) -> NDArray[np.floating]:
    """Jaccard distances (N, N) float32, or float16. Which faiss search is asked for makes no difference."""
    if search_option not in (0, 1, 2, 3):
        raise ValueError(f"{op}: expected search_option 0, 1, 2 or 3 (all the same here), got {search_option!r}")
    graph = jaccard_graph(features, k1=k1, k2=k2)
    dense = np.ones(graph.shape, np.float16 if fp16 else np.float32)
    dense[np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr)), graph.indices] = graph.data
    return dense
