# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Exact top-k search with the distances that `rank` compares."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from reidfast.evaluation import _engine
from reidfast.evaluation._distances import Problem, csr_slice, tensor, together
from reidfast.evaluation._groups import ranks_of
from reidfast.evaluation._inputs import check_count, found, to_tensor
from reidfast.evaluation._pairs import Ints, offsets


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
    k = check_count(op, "k", k)
    ranks = ranks_of(op, group)
    with together(ranks):
        problem = Problem.read(op, query, gallery, metric, ranks, False)
    first, total = ranks.starts(problem.gallery.n)
    if k > total:
        raise ValueError(f"{op}: expected k at most the gallery's {total} rows, got k={k}")
    n, device = problem.query.n, problem.query.device
    with together(ranks):
        ptr, rows = _read_exclude(op, exclude, n, total)
        values = torch.empty(n, k, dtype=problem.dtype, device=device)
        columns = torch.empty(n, k, dtype=torch.int64, device=device)
        filled = torch.zeros(n, dtype=torch.int64)
        for q0, some in problem.query_chunks():
            here = slice(q0, q0 + len(some))
            some_ptr, entries = csr_slice(ptr, q0, q0 + len(some))
            for g0, part in problem.gallery_chunks():
                status = _engine.NEAREST_FEATURES.on[problem.device](
                    some, part, None, problem.metric, first + g0, some_ptr, tensor(rows[entries]),
                    _engine.BLOCK_QUERIES, _engine.BLOCK_GALLERY, values[here], columns[here], filled[here],
                )  # fmt: skip
                problem.check(status, q0, g0)
        _engine.SORT_NEAREST.on[problem.device](values, columns, filled)
    if ranks.size > 1:
        values, columns = _merge(ranks, values, columns, k)
    return _like(query, values), _like(query, columns)


def _merge(ranks: Any, values: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # Ranks in order hold ascending columns, so a stable sort by distance keeps ties by column.
    n = len(values)
    v = ranks.concatenate(values.cpu().numpy()).reshape(ranks.size, n, k).transpose(1, 0, 2).reshape(n, -1)
    c = ranks.concatenate(columns.cpu().numpy()).reshape(ranks.size, n, k).transpose(1, 0, 2).reshape(n, -1)
    order = np.argsort(v, axis=1, kind="stable")[:, :k]
    best, column = np.take_along_axis(v, order, 1), np.take_along_axis(c, order, 1)
    return torch.from_numpy(best).to(values.device), torch.from_numpy(column).to(values.device)


def _read_exclude(op: str, exclude: Any, n: int, total: int) -> tuple[Ints, Ints]:
    """CSR of excluded rows, ascending and without repetition per query."""
    if exclude is None:
        return np.zeros(n + 1, np.int64), np.empty(0, np.int64)
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
        raise TypeError(f"{op}: expected exclude of an integer dtype, got {found(exclude)}")
    rows = rows.astype(np.int64)
    if rows.size and (rows.min() < -1 or rows.max() >= total):
        bad = rows[(rows < -1) | (rows >= total)][0]
        raise ValueError(f"{op}: expected rows in exclude from -1 to {total - 1}, got {bad}")
    query, rows = query[rows >= 0], rows[rows >= 0]
    both = np.unique(query * total + rows)
    return offsets(np.bincount(both // total, minlength=n)), both % total


def _like(source: Any, result: Tensor) -> Any:
    """``result`` in the kind of ``source``."""
    if isinstance(source, Tensor):
        return result
    if isinstance(source, (list, tuple)) and source and isinstance(source[0], Tensor):
        return result
    module = type(source[0] if isinstance(source, (list, tuple)) and source else source).__module__.split(".")[0]
    if module == "cupy":
        import cupy

        return cupy.from_dlpack(result)
    return result.cpu().numpy()
