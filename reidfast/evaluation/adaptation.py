# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Better features without training: camera means, query expansion, database-side augmentation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reidfast.evaluation._inputs import check_count, read_features, read_ids
from reidfast.evaluation.nearest import search
from reidfast.evaluation.reranking import as_matrix, like

__all__ = ["database_augmentation", "query_expansion", "subtract_camera_mean"]


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)


def subtract_camera_mean(
    features: Any, cameras: Any, *, reference: Any = None, reference_cameras: Any = None, normalize: bool = True
) -> Any:
    """Every feature minus the mean feature of its camera: what the cameras themselves look like goes.

        y_i = x_i - mean of { x_j : camera_j = camera_i },  x of unit length first, y of unit length again (normalize)

    Args:
        features: (N, D), torch, numpy or cupy.
        cameras: (N,) integers.
        reference: Features that the means are taken of, (M, D); None = `features` themselves. Give queries and gallery
            together here (or one after the other in `features`): few queries make poor means.
        reference_cameras: (M,) integers; needed with `reference`.
        normalize: Whether to scale to unit length before and after; the mean of raw features weighs long ones more.

    Returns:
        float32 (N, D), of the kind and on the device of `features`.

    Raises:
        ValueError: shapes that do not fit, one of reference and reference_cameras alone, or a camera without reference.

    Notes:
        A camera of one single row becomes zero there (distance 1 to everything under cosine).

    Example:
        >>> subtract_camera_mean(torch.eye(2), torch.tensor([0, 0]), normalize=False).tolist()
        [[0.5, -0.5], [-0.5, 0.5]]
    """
    op = "subtract_camera_mean"
    x = as_matrix(read_features(op, "features", features))
    of = read_ids(op, "cameras", cameras, len(x), "features")
    if (reference is None) != (reference_cameras is None):
        raise ValueError(f"{op}: expected reference and reference_cameras together, got one of them")
    if reference is None:
        y, seen = x, of
    else:
        y = as_matrix(read_features(op, "reference", reference)).to(x.device)
        seen = read_ids(op, "reference_cameras", reference_cameras, len(y), "reference")
        if y.shape[1] != x.shape[1]:
            raise ValueError(f"{op}: expected reference with D={x.shape[1]} to match features, got D={y.shape[1]}")
    known, group = torch.from_numpy(seen).unique(return_inverse=True)
    own = torch.from_numpy(of)
    place = torch.searchsorted(known, own).clamp_max(max(0, len(known) - 1))
    if len(own) and (len(known) == 0 or bool((known[place] != own).any())):
        missing = int(own[known[place] != own][0]) if len(known) else int(own[0])
        raise ValueError(f"{op}: expected reference features of every camera, got none of camera {missing}")
    if normalize:
        x, y = _unit(x), _unit(y)
    sums = torch.zeros(len(known), x.shape[1], dtype=torch.float64, device=x.device)
    sums.index_add_(0, group.to(x.device), y.double())
    means = sums / torch.bincount(group, minlength=len(known)).to(x.device)[:, None]
    out = (x.double() - means[place.to(x.device)]).float()
    return like(features, _unit(out) if normalize else out)


def _weighted_mean(x: Tensor, items: Tensor, k: int, alpha: float, own: bool) -> Tensor:
    """Unit sum of the k nearest rows of `items` (unit length), weights cos^alpha, and of x itself with weight 1."""
    distances, indices = search(x, items, min(k, len(items)))
    weights = (1 - distances).clamp_min(0) ** alpha
    total = x.clone() if own else torch.zeros_like(x)
    for j in range(indices.shape[1]):  # k rows one after the other: no (N, k, D) array
        total += weights[:, j, None] * items[indices[:, j]]
    return _unit(total)


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
        >>> query_expansion(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]]), k=1, alpha=0).numpy().round(3)
        array([[0.894, 0.447]], dtype=float32)
    """
    op = "query_expansion"
    k, iterations = check_count(op, "k", k), check_count(op, "iterations", iterations)
    if not alpha >= 0:
        raise ValueError(f"{op}: expected alpha >= 0, got {alpha!r}")
    x, items = (_unit(as_matrix(read_features(op, n, f))) for n, f in (("query", query), ("gallery", gallery)))
    for _ in range(iterations):
        x = _weighted_mean(x, items.to(x.device), k, alpha, own=True)
    return like(query, x)


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
        >>> database_augmentation(torch.eye(2), k=1).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    op = "database_augmentation"
    k, iterations = check_count(op, "k", k), check_count(op, "iterations", iterations)
    if not alpha >= 0:
        raise ValueError(f"{op}: expected alpha >= 0, got {alpha!r}")
    x = _unit(as_matrix(read_features(op, "features", features)))
    for _ in range(iterations):
        x = _weighted_mean(x, x, k, alpha, own=False)
    return like(features, x)
