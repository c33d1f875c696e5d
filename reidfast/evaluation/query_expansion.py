# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Queries moved towards what they find."""

from __future__ import annotations

from typing import Any

from reidfast._arrays import like
from reidfast.evaluation._core.expansion import unit, weighted_mean
from reidfast.evaluation._core.features import read_features
from reidfast.evaluation._core.options import check_count

__all__ = ["query_expansion"]


def query_expansion(query: Any, gallery: Any, *, k: int = 10, alpha: float = 3.0, iterations: int = 1) -> Any:
    """Queries moved towards their nearest gallery features (alpha query expansion).

        q' = unit(q + sum over the k nearest g of cos(q, g)^alpha g)

    alpha = 0 is average query expansion (Chum, Philbin, Sivic, Isard, Zisserman, "Total Recall", ICCV 2007); the
    weights are those of Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval", TPAMI 2019.

    Args:
        query: (Q, D), torch, numpy or cupy; normalised here.
        gallery: (G, D), likewise.
        k: Neighbours taken; fewer where the gallery is smaller.
        alpha: Power of the similarity; negative similarities count nothing.
        iterations: Repetitions, each searching with the result of the one before.

    Returns:
        float32 (Q, D) of unit length, of the kind and on the device of `query`.

    Raises:
        ValueError: k or iterations below 1, negative alpha, shapes that do not fit.

    Notes:
        No Q x G array: neighbours come from `search`.

    Example:
        >>> import torch
        >>> query_expansion(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]]), k=1, alpha=0).numpy().round(3)
        array([[0.894, 0.447]], dtype=float32)
    """
    op = "query_expansion"
    k, iterations = check_count(op, "k", k), check_count(op, "iterations", iterations)
    if not alpha >= 0:
        raise ValueError(f"{op}: expected alpha >= 0, got {alpha!r}")
    x, items = (unit(read_features(op, n, f).matrix()) for n, f in (("query", query), ("gallery", gallery)))
    for _ in range(iterations):
        x = weighted_mean(x, items.to(x.device), k, alpha, own=True)
    return like(query, x)
