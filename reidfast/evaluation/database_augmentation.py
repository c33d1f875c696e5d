# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Gallery features replaced by means of their neighbours."""

from __future__ import annotations

from typing import Any

from reidfast._arrays import like
from reidfast.evaluation._core.expansion import unit, weighted_mean
from reidfast.evaluation._core.features import read_features
from reidfast.evaluation._core.options import check_count

__all__ = ["database_augmentation"]


def database_augmentation(features: Any, *, k: int = 10, alpha: float = 3.0, iterations: int = 1) -> Any:
    """Every gallery feature replaced by a mean of its nearest ones, itself included (database-side augmentation).

        g' = unit(sum over the k nearest h of g, g itself first, of cos(g, h)^alpha h)

    Turcot, Lowe, "Better matching with fewer features", ICCV Workshops 2009; Arandjelovic, Zisserman, "Three things
    everyone should know to improve object retrieval", CVPR 2012. Queries are searched against the result.

    Args:
        features: (N, D), torch, numpy or cupy; normalised here.
        k: Rows averaged, itself included.
        alpha: Power of the similarity; 0 = plain mean.
        iterations: Repetitions.

    Returns:
        float32 (N, D) of unit length, of the kind and on the device of `features`.

    Raises:
        ValueError: as `query_expansion`.

    Example:
        >>> import torch
        >>> database_augmentation(torch.eye(2), k=1).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    op = "database_augmentation"
    k, iterations = check_count(op, "k", k), check_count(op, "iterations", iterations)
    if not alpha >= 0:
        raise ValueError(f"{op}: expected alpha >= 0, got {alpha!r}")
    x = unit(read_features(op, "features", features).matrix())
    for _ in range(iterations):
        x = weighted_mean(x, x, k, alpha, own=False)
    return like(features, x)
