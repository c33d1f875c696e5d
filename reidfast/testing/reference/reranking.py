# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""k-reciprocal re-ranking with dense matrices: the truth in tests, and what runs where nothing is compiled.

Memory: several arrays of N x N, N = Q + G. Works in the dtype of its input (float64 stays float64).
Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reidfast.evaluation._core.rerank_variants import RerankVariant, half_neighbours

__all__ = ["base_distances", "dense_jaccard", "dense_rerank", "dense_rerank_distances"]

Array = NDArray[np.floating]


def base_distances(x: Array, y: Array, variant: RerankVariant) -> Array:
    """||x - y||^2, or 1 - cos (a zero vector has distance 1 to everything)."""
    if variant.metric == "cosine":
        norms = [np.sqrt((z * z).sum(1, keepdims=True)) for z in (x, y)]
        x, y = (z / np.where(n > 0, n, 1) for z, n in zip((x, y), norms, strict=True))
        return np.maximum(1 - x @ y.T, 0)
    return np.maximum((x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * (x @ y.T), 0)


def _reciprocal(rank: NDArray[np.integer], i: int, k: int) -> NDArray[np.integer]:
    nearest = rank[i, :k]
    return nearest[(rank[nearest, :k] == i).any(1)]


def _expanded(rank: NDArray[np.integer], i: int, k: int, half: int) -> NDArray[np.integer]:
    own = _reciprocal(rank, i, k)
    sets = [own]
    for j in own:
        other = _reciprocal(rank, int(j), half)
        if 3 * np.isin(other, own).sum() > 2 * len(other):
            sets.append(other)
    return np.unique(np.concatenate(sets))


def _jaccard(
    base: Array, rows: slice, columns: slice, k1: int, k2: int, variant: RerankVariant, self_first: bool
) -> tuple[Array, Array]:
    """J [rows, columns] and Dn [rows, columns] of base distances [N, N], base[j, i] = distance of j as seen by i.

    Ties: lowest index; with `self_first` an item goes before its duplicates.
    """
    n = len(base)
    raised = base**variant.power
    largest = raised.max(0) if n else np.ones(0, base.dtype)
    scaled = (raised / np.where(largest > 0, largest, 1)).T
    order = raised.T.copy()
    if self_first:
        np.fill_diagonal(order, -1)
    rank = np.argsort(order, axis=1, kind="stable")
    k, half = k1 + variant.extra, half_neighbours(variant, k1)
    if variant.extra == 0:
        rank = rank[:, :k1]
    store = np.float16 if variant.storage == "float16" else base.dtype
    two = 2 if variant.metric == "cosine" else 1  # ||x - y||^2 of unit vectors is 2 (1 - cos)
    v = np.zeros((n, n), store)
    for i in range(n):
        members = _expanded(rank, i, k, half)
        if variant.weight == "raw":
            logits = -two * base[members, i]
            weights = np.exp(logits - logits.max()) if len(members) else logits
        else:
            weights = np.exp(-scaled[i, members])
        v[i, members] = weights / weights.sum()
    if k2 > 1:
        v = np.stack([v[rank[i, :k2]].mean(0) for i in range(n)]) if n else v
    minima = np.zeros((n, n), store)[rows, columns]
    for c in range(n):  # summed over items in ascending order, as every code base does
        minima += np.minimum(v[rows, c, None], v[None, columns, c])
    jaccard = (1 - minima / (2 - minima)).astype(store)
    return np.maximum(jaccard, 0), scaled[rows, columns]


def dense_rerank_distances(
    q_g: Array,
    q_q: Array,
    g_g: Array,
    k1: int,
    k2: int,
    lambda_: float,
    variant: RerankVariant,
    self_first: bool = False,
) -> Array:
    """Final distances [Q, G] from the three blocks of base distances."""
    q = len(q_g)
    base = np.block([[q_q, q_g], [q_g.T, g_g]])
    jaccard, scaled = _jaccard(base, slice(0, q), slice(q, None), k1, k2, variant, self_first)
    blend = q_g if variant.blend == "raw" else scaled
    return jaccard * (1 - lambda_) + blend * lambda_


def dense_rerank(query: Array, gallery: Array, k1: int, k2: int, lambda_: float, variant: RerankVariant) -> Array:
    """Final distances [Q, G] from features [Q, D], [G, D]."""
    x = np.concatenate([query, gallery])
    base = base_distances(x, x, variant)
    np.fill_diagonal(base, 0)
    q = len(query)
    return dense_rerank_distances(base[:q, q:], base[:q, :q], base[q:, q:], k1, k2, lambda_, variant, True)


def dense_jaccard(features: Array, k1: int, k2: int, variant: RerankVariant) -> Array:
    """Jaccard distances [N, N] among features [N, D]."""
    base = base_distances(features, features, variant)
    np.fill_diagonal(base, 0)
    return _jaccard(base, slice(None), slice(None), k1, k2, variant, True)[0]
