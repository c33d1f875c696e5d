# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""torchreid's evaluation functions: names, argument order, defaults and return types of torchreid 0.2.5 and 1.4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from reidfast.compat import _shared
from reidfast.compat._patch import Patcher
from reidfast.compat._shared import re_ranking

__all__ = [
    "compute_distance_matrix",
    "cosine_distance",
    "euclidean_squared_distance",
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
) -> tuple[NDArray[np.float32], float]:
    """CMC and mean average precision of a distance matrix.

    Args:
        distmat: (Q, G), numpy or torch.
        q_pids: (Q,) identities.
        g_pids: (G,) identities; -1 is junk and dropped.
        q_camids: (Q,) cameras.
        g_camids: (G,) cameras.
        max_rank: Length of the CMC, cut to G.
        use_metric_cuhk03: Single-gallery-shot CMC: the expectation, where torchreid averages 10 random draws.
        use_cython: Accepted and ignored.

    Returns:
        (cmc float32 (min(max_rank, G),), mAP as a Python float).

    Raises:
        ValueError: no query has a match (torchreid: AssertionError).

    Notes:
        Ties: by gallery index; torchreid's order of ties depends on the processor. Where fewer than max_rank rows
        remain the last CMC value is carried on (torchreid raises, or returns values of another query).
    """
    cmc, result = _shared.evaluate(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, use_metric_cuhk03)
    return cmc, result.mean_ap


def compute_distance_matrix(input1: Tensor, input2: Tensor, metric: str = "euclidean") -> Tensor:
    """Distances (M, N) of features (M, D) and (N, D): "euclidean" (squared, as in torchreid) or "cosine"."""
    op = "compute_distance_matrix"
    for name, x in (("input1", input1), ("input2", input2)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: expected {name} as a torch tensor, got {type(x).__name__}")
        if x.ndim != 2:
            raise ValueError(f"{op}: expected {name} of shape (N, D), got {tuple(x.shape)}")
    if input1.shape[1] != input2.shape[1]:
        raise ValueError(f"{op}: expected one feature size, got {input1.shape[1]} and {input2.shape[1]}")
    if metric == "euclidean":
        return euclidean_squared_distance(input1, input2)
    if metric == "cosine":
        return cosine_distance(input1, input2)
    raise ValueError(f"{op}: expected metric 'euclidean' or 'cosine', got {metric!r}")


def euclidean_squared_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Squared Euclidean distances (M, N)."""
    return _shared.square_distances(input1, input2)


def cosine_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """1 - cos (M, N)."""
    return _shared.cosine_distances(input1, input2)


_PLACES: dict[tuple[str, str], Callable[..., Any]] = {
    ("metrics.rank", "evaluate_rank"): evaluate_rank,
    ("metrics.distance", "compute_distance_matrix"): compute_distance_matrix,
    ("metrics.distance", "euclidean_squared_distance"): euclidean_squared_distance,
    ("metrics.distance", "cosine_distance"): cosine_distance,
    ("utils.rerank", "re_ranking"): re_ranking,
}
# The package on the index keeps everything below torchreid.reid.
_PATCHER = Patcher("torchreid", _PLACES | {(f"reid.{module}", name): f for (module, name), f in _PLACES.items()})
patch, unpatch = _PATCHER.patch, _PATCHER.unpatch
