# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Re-ranking and Jaccard distances with dense matrices, in our words, where the peers' own code is not installed.

In the dtype of the features: float32 is what the peers do, float64 settles who is right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def square_distances(x: Tensor, y: Tensor) -> Array:
    """|x - y|^2 by expansion."""
    return (x.square().sum(1, keepdim=True) + y.square().sum(1)).addmm_(x, y.T, alpha=-2).numpy()


def dense_weights(
    rank: Array, weigh: Callable[[int, Array], Array], near: int, half: int, k2: int, dtype: Any = np.float32
) -> Array:
    """V as a dense matrix with a Python loop over items, as torchreid, fast-reid and OpenUnReID make it."""
    n = len(rank)

    def reciprocal(i: int, k: int) -> Array:
        forward = rank[i, :k]
        return forward[np.where(rank[forward, :k] == i)[0]]

    v = np.zeros((n, n), dtype)
    for i in range(n):
        own = reciprocal(i, near)
        grown = own
        for j in own:
            other = reciprocal(j, half)
            if len(np.intersect1d(other, own)) > 2 / 3 * len(other):
                grown = np.append(grown, other)
        grown = np.unique(grown)
        v[i, grown] = weigh(i, grown)
    if k2 == 1:
        return v
    expanded = np.zeros_like(v)
    for i in range(n):
        expanded[i] = v[rank[i, :k2]].mean(0)
    return expanded


def dense_jaccard(v: Array, rows: int) -> Array:
    """Jaccard distances by inverted lists over a dense V."""
    lists = [np.where(v[:, j] != 0)[0] for j in range(len(v))]
    out = np.empty((rows, len(v)), v.dtype)
    for i in range(rows):
        minima = np.zeros(len(v), v.dtype)
        for j in np.where(v[i] != 0)[0]:
            minima[lists[j]] += np.minimum(v[i, j], v[lists[j], j])
        out[i] = 1 - minima / (2 - minima)
    return out


def argsort_pattern(q: Tensor, g: Tensor, k1: int = 20, k2: int = 6, lambda_: float = 0.3) -> Array:
    """Three distance matrices, full argsort, dense V: what torchreid does from features on."""
    distances = [square_distances(a, b) for a, b in ((q, g), (q, q), (g, g))]
    whole = np.block([[distances[1], distances[0]], [distances[0].T, distances[2]]])
    whole = np.power(whole, 2)
    whole = np.transpose(whole / whole.max(0))
    rank = np.argsort(whole).astype(np.int32)

    def weigh(i: int, others: Array) -> Array:
        weights = np.exp(-whole[i, others])
        return np.asarray(weights / weights.sum())

    v = dense_weights(rank, weigh, k1 + 1, round(k1 / 2) + 1, k2, whole.dtype)
    return np.asarray((dense_jaccard(v, len(q)) * (1 - lambda_) + whole[: len(q)] * lambda_)[:, len(q) :])


def neighbours_pattern(x: Tensor, k1: int = 30, k2: int = 6) -> Array:
    """Exact neighbours (faiss where it is installed), one small product per item, dense V: cluster-contrast's way."""
    try:
        import faiss

        index = faiss.IndexFlatL2(x.shape[1])
        index.add(x.numpy())
        rank = index.search(x.numpy(), k1)[1]
    except ImportError:
        rank = np.concatenate([(x[i : i + 512] @ x.T).topk(k1).indices.numpy() for i in range(0, len(x), 512)])

    def weigh(i: int, others: Array) -> Array:
        return torch.softmax(2 * (x[i : i + 1] @ x[torch.from_numpy(others)].T) - 2, 1).flatten().numpy()

    return dense_jaccard(dense_weights(rank, weigh, k1 + 1, round(k1 / 2) + 1, k2), len(x))
