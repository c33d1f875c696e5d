# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Exact top-k search with the distances that `rank` compares."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from reidfast._arrays import describe, like, to_tensor
from reidfast._shards import Shards, agreement, raise_everywhere, shards_of
from reidfast.evaluation._core import plan
from reidfast.evaluation._core.features import FeaturePair
from reidfast.evaluation._core.options import check_count
from reidfast.evaluation._core.pairs import offsets


def search(
    query: Any, gallery: Any, k: int, *, metric: str = "cosine", exclude: Any = None, group: Any = None
) -> tuple[Any, Any]:
    """The k nearest gallery rows of every query, exactly.

    Args:
        query: Features (Q, D), as in `rank`.
        gallery: Features (G, D), as in `rank`.
        k: How many; at most G.
        metric: As in `rank`.
        exclude: Gallery rows that a query must not find: int64 (Q,) with one row each or (Q, m) with several, -1 =
            none; or a list of Q integer arrays of any lengths.
        group: Process group over which the gallery is sharded, as in `rank`; rows are numbered over the whole gallery.

    Returns:
        (distances (Q, k), indices (Q, k) int64), nearest first, in the kind of ``query`` and on its device: torch
        tensors for torch, numpy for numpy, files and lists, cupy for cupy. Distances are float32, float64 where either
        side is float64. Where ``exclude`` leaves fewer than k rows the rest is distance inf, index -1.

    Raises:
        ValueError: shapes do not fit, k exceeds G, or a feature is NaN or inf.
        TypeError: features are not floating point.

    Notes:
        Ties: lowest index first. The distances are those that `rank` compares, bit for bit.
        Memory beside features and result: tiles of some 60 MB at D = 2048. Deterministic.

    Example:
        >>> import numpy as np
        >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> search(x[:1], x, 2, metric="sqeuclidean", exclude=[0])
        (array([[0., 2.]]), array([[2, 1]]))
    """
    op = "search"
    shards = shards_of(op, group)
    with agreement(op, shards) as facts:
        k = check_count(op, "k", k)
        features = FeaturePair.read(op, query, gallery, shards, metric)
        features.agree_on(facts)
        facts.add(k=k, exclude=_plain(exclude) if facts.wanted else None, backend=plan.serving(features.device.type))
    features.settle_dtype(shards)
    first, total = shards.starts(features.gallery.n)
    if k > total:
        raise ValueError(f"{op}: expected k at most the gallery's {total} rows, got k={k}")
    with raise_everywhere(shards):
        exclude_ptr, excluded = _read_exclude(op, exclude, features.query.n, total)
        backend = plan.choose(op, features.device, wide=features.wide).features
        distances, rows = backend.nearest(features, k, first, exclude_ptr, excluded)
    if shards.count > 1:
        distances, rows = _merge(shards, distances, rows)
    return like(query, distances), like(query, rows)


def _merge(shards: Shards, distances: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    # Shards in order hold ascending rows, so a stable sort by distance keeps ties by row.
    n, k = distances.shape
    d, r = (shards.concatenate(x).view(shards.count, n, k).transpose(0, 1).reshape(n, -1) for x in (distances, rows))
    order = d.argsort(dim=1, stable=True)[:, :k]
    return d.gather(1, order), r.gather(1, order)


def _plain(exclude: Any) -> Any:
    """What two processes can compare."""
    if exclude is None:
        return None
    if isinstance(exclude, (list, tuple)):
        return [np.asarray(e.cpu() if isinstance(e, Tensor) else e).tolist() for e in exclude]
    return to_tensor("search", "exclude", exclude).cpu().tolist()


def _read_exclude(op: str, exclude: Any, n: int, total: int) -> tuple[Tensor, Tensor]:
    """CSR, over queries, of excluded rows, ascending and without repetition per query."""
    if exclude is None:
        return torch.zeros(n + 1, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    ragged = isinstance(exclude, (list, tuple)) and any(np.ndim(e) == 1 for e in exclude)
    if ragged:
        if len(exclude) != n:
            raise ValueError(f"{op}: expected exclude with one entry per query, {n}, got {len(exclude)}")
        parts = [np.asarray(e.cpu() if isinstance(e, Tensor) else e) for e in exclude]
        parts = [p.astype(np.int64) if p.size == 0 else p for p in parts]
        kinds = {p.dtype.kind for p in parts}
        query = np.repeat(np.arange(n), [p.size for p in parts])
        rows = np.concatenate([p.ravel() for p in parts]) if parts else np.empty(0, np.int64)
    else:
        x = (
            np.asarray(exclude)
            if isinstance(exclude, (list, tuple))
            else to_tensor(op, "exclude", exclude).cpu().numpy()
        )
        kinds = {x.dtype.kind} if x.size else set()
        if x.ndim not in (1, 2) or len(x) != n:
            raise ValueError(f"{op}: expected exclude of shape ({n},) or ({n}, m), got {x.shape}")
        rows = x.ravel()
        query = np.repeat(np.arange(n), x.size // max(1, n))
    if kinds - {"i", "u"}:
        raise TypeError(f"{op}: expected exclude of an integer dtype, got {describe(exclude)}")
    rows = rows.astype(np.int64)
    if rows.size and (rows.min() < -1 or rows.max() >= total):
        outside = rows[(rows < -1) | (rows >= total)][0]
        raise ValueError(f"{op}: expected rows in exclude from -1 to {total - 1}, got {outside}")
    query, rows = query[rows >= 0], rows[rows >= 0]
    both = torch.from_numpy(np.unique(query * total + rows))
    return offsets(torch.bincount(both // max(1, total), minlength=n)), both % max(1, total)
