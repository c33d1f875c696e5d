# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The steps of re-ranking by device and backend.

On the CPU the compiled ops serve (csrc/torch/rerank). On CUDA the neighbours come from the kernel that selects in
the product's epilogue (reidfast/ops/triton/ranking.py), sets and Jaccard distances from csrc/cuda/rerank.cu; where
those cannot serve (no CUDA in this build, very large k1), sets are made on the CPU. The functions here state all steps
in plain torch and numpy, row block by row block; they serve builds without the compiled part. Sparse rows are (indptr
int64, columns int32, values float32).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidfast.evaluation import _engine
from reidfast.evaluation._dispatch import Dispatch

__all__ = ["DISTANCES", "ENCODE", "FINAL", "JACCARD", "NEIGHBOURS", "NEIGHBOURS_FROM_DISTANCES", "SETTLE"]

_ROWS = 1024
_METRICS = {"cosine": _engine.COSINE, "sqeuclidean": _engine.SQEUCLIDEAN}
Sparse = tuple[Tensor, Tensor, Tensor]


def _base(x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    d, status = _engine.DENSE_DISTANCES.on[x.device.type](x, y, None, _METRICS[metric])
    return d.clamp_min(0), status


def _nearest(d: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, order = torch.sort(d, dim=1, stable=True)
    return values[:, :k], order[:, :k].int()


def neighbours(
    query: Tensor, gallery: Tensor, k: int, metric: str, square: bool, part: int, parts: int
) -> tuple[Tensor, ...]:
    """Ids (n, k), D (n, k), largest D (n,) of every item, itself first; base distances (Q, G) or empty; and status.

    Of row blocks part, part + parts, ... alone; the lists of all parts together hold the nearest. The compiled op keeps
    base distances where they are small and have the bits of those that it would make again.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    status = _engine.fine()
    number = -1
    sides = [(side, x) for side, x in enumerate((query, gallery)) if len(x)]
    for side, x in sides:
        for begin in range(0, len(x), _ROWS):
            number += 1
            some = x[begin : begin + _ROWS]
            if number % parts != part:
                nobody = some.new_full((len(some), k), torch.inf)
                found.append((torch.full_like(nobody, -1, dtype=torch.int32), nobody, some.new_zeros(len(some))))
                continue
            pieces = []
            for other, y in sides:
                # 33 rows or more: fewer are served by tiles of another height
                padded = torch.cat([some, some[:1].expand(33 - len(some), -1)]) if len(some) < 33 else some
                d, status = _base(padded, y, metric)
                if status[1]:
                    status[0] = other if status[0] else side
                    n, empty = len(query) + len(gallery), query.new_empty
                    return empty(n, k).int(), empty(n, k), empty(n), empty(0, 0), status
                pieces.append(d[: len(some)])
            block = torch.cat(pieces, 1)
            block = block * block if square else block
            own = torch.arange(len(block), device=block.device)
            item = own + begin + (len(query) if side else 0)
            block[own, item] = -1
            values, ids = _nearest(block, k)
            found.append((ids, values.clamp_min(0), block.amax(1).clamp_min(0)))
    if not found:
        return query.new_empty(0, k).int(), query.new_empty(0, k), query.new_empty(0), query.new_empty(0, 0), status
    ids, values, largest = (torch.cat([f[i] for f in found]) for i in range(3))
    return ids, values, largest, query.new_empty(0, 0), status


_ROUNDING = 8.0 / (1 << 24)


def settle(
    query: Tensor, gallery: Tensor, ids: Tensor, distances: Tensor, keep: int, metric: str, square: bool
) -> tuple[Tensor, Tensor]:
    """The first ``keep`` entries of lists (n, k), where entries that rounding may have swapped are sorted again.

    Entries whose base distances follow within _ROUNDING (|x|^2 + |y|^2) are taken by their distance in float64, then
    by id. The item itself stays first.
    """
    x = torch.cat([query, gallery]).double()
    norm = x.square().sum(1)
    ids, distances = ids.clone(), distances.clone()
    base = distances.double().sqrt() if square else distances.double()
    scale = torch.full_like(base, 2.0) if metric == "cosine" else norm[:, None] + norm[ids.long().clamp_min(0)]
    own = torch.arange(len(ids), device=ids.device)[:, None] == ids
    usable = (ids >= 0) & ~own
    close = base.diff(dim=1) <= _ROUNDING * torch.maximum(scale[:, 1:], scale[:, :-1])
    close &= usable[:, 1:] & usable[:, :-1]
    for i in torch.nonzero(close.any(1))[:, 0].tolist():
        begin = 0
        for end in range(1, ids.shape[1] + 1):
            if end < ids.shape[1] and close[i, end - 1]:
                continue
            if end - begin > 1 and begin < keep:
                others = ids[i, begin:end].long()
                if metric == "cosine":
                    norms = norm[i] * norm[others]
                    cosine = torch.where(norms > 0, x[others] @ x[i] / norms.clamp_min(1e-300).sqrt(), 0)
                    exact = (1 - cosine).clamp_min(0)
                else:
                    exact = (x[others] - x[i]).square().sum(1)
                order = np.lexsort((others.cpu().numpy(), exact.cpu().numpy()))
                at = torch.from_numpy(order).to(ids.device)
                value = exact[at].float()
                ids[i, begin:end] = others[at].int()
                distances[i, begin:end] = value * value if square else value
            begin = end
    return ids[:, :keep].contiguous(), distances[:, :keep].contiguous()


def neighbours_on_kernels(
    query: Tensor, gallery: Tensor, k: int, metric: str, square: bool, part: int, parts: int
) -> tuple[Tensor, ...]:
    """`neighbours` on CUDA: selection in the epilogue of the product, blocks of rows against all items."""
    from reidfast.ops.triton import ranking

    if k > ranking.MAX_K:
        return neighbours(query, gallery, k, metric, square, part, parts)
    number, cosine, device = _METRICS[metric], metric == "cosine", query.device
    n, step = len(query) + len(gallery), 8192
    ids = torch.full((n, k), -1, dtype=torch.int32, device=device)
    values = torch.full((n, k), torch.inf, device=device)
    largest = torch.zeros(n, device=device)
    items = torch.arange(n, device=device)
    packed = [ranking.pack(x, None, cosine, "float32") for x in (query, gallery) if len(x)]
    blocks = [(side, i) for side, x in enumerate(packed) for i in range(0, x.n, step)]
    for side, begin in blocks[part::parts]:
        some = packed[side].part(begin, step)
        own = items[begin : begin + some.n] + (packed[0].n if side else 0)
        found = [ranking.nearest(some, x, number, min(k, x.n), farthest=True) for x in packed]
        firsts = [0, packed[0].n]
        d = torch.cat([values for values, _, _ in found], 1).clamp_min(0)
        item = torch.cat(
            [torch.where(r >= 0, r + first, n) for (_, r, _), first in zip(found, firsts, strict=False)], 1
        )
        top = torch.stack([t for _, _, t in found]).amax(0).clamp_min(0)
        d, top = (d * d, top * top) if square else (d, top)
        # The item itself stands first, found or not; other ties go to the lowest item.
        d = torch.cat([torch.zeros_like(d[:, :1]), d.masked_fill(item == own[:, None], torch.inf)], 1)
        item = torch.cat([own[:, None], item.masked_fill(item == own[:, None], n)], 1)
        order_id = torch.cat([torch.full_like(own[:, None], -1), item[:, 1:]], 1)
        order = order_id.argsort(dim=1, stable=True)
        order = order.gather(1, d.gather(1, order).argsort(dim=1, stable=True))[:, :k]
        item = item.gather(1, order)
        ids[own] = torch.where(item < n, item, -1).int()
        values[own] = d.gather(1, order)
        largest[own] = top
    return ids, values, largest, query.new_empty(0, 0), _engine.fine()


def merge_neighbours(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The k nearest of each item from the lists of several parts, (parts, n, k) each."""
    parts, n, k = ids.shape
    flat = ids.permute(1, 0, 2).reshape(n, parts * k).long()
    d = values.permute(1, 0, 2).reshape(n, parts * k)
    own = flat == torch.arange(n, device=ids.device)[:, None]
    again = own & (own.long().cumsum(1) > 1)  # every part lists the item itself
    gone = again | (flat < 0)
    order_id = torch.where(own, -1, torch.where(gone, torch.iinfo(torch.int64).max, flat))
    d = torch.where(gone, torch.inf, d)
    for key in ("id", "distance"):
        order = torch.argsort(order_id if key == "id" else d, dim=1, stable=True)
        flat, d, gone, order_id = (x.gather(1, order) for x in (flat, d, gone, order_id))
    return torch.where(gone, -1, flat)[:, :k].int().contiguous(), d[:, :k].contiguous()


def _columns(q_g: Tensor, q_q: Tensor, g_g: Tensor, begin: int, end: int) -> Tensor:
    """Columns [begin, end) of the whole [[q_q, q_g], [q_g^T, g_g]], transposed."""
    q = len(q_g)
    left = torch.cat([q_q[:, begin : min(end, q)], q_g[begin : min(end, q)].T])
    right = torch.cat([q_g[:, max(begin - q, 0) : max(end - q, 0)], g_g[:, max(begin - q, 0) : max(end - q, 0)]])
    return torch.cat([left.T, right.T])


def neighbours_from_distances(q_g: Tensor, q_q: Tensor, g_g: Tensor, k: int, square: bool) -> tuple[Tensor, ...]:
    """Ids (n, k), D (n, k), largest D (n,) of every item."""
    n = sum(q_g.shape)
    ids, values, largest = torch.empty(n, k, dtype=torch.int32), torch.empty(n, k), torch.empty(n)
    for begin in range(0, n, _ROWS):
        d = _columns(q_g, q_q, g_g, begin, min(n, begin + _ROWS))
        d = d * d if square else d
        values[begin : begin + _ROWS], ids[begin : begin + _ROWS] = _nearest(d, k)
        largest[begin : begin + _ROWS] = d.amax(1).clamp_min(0)
    return ids, values, largest


def _reciprocal(rank: NDArray[np.int32], i: int, k: int) -> NDArray[np.int32]:
    near = rank[i, :k]
    near = near[near >= 0]
    return np.asarray(near[(rank[near, :k] == i).any(1)])


def _csr(rows: list[NDArray[np.int32]], values: list[NDArray[np.floating]]) -> Sparse:
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    columns = np.concatenate([np.empty(0, np.int32), *rows]).astype(np.int32)
    flat = np.concatenate([np.empty(0, np.float32), *values]).astype(np.float32)
    return torch.from_numpy(indptr), torch.from_numpy(columns), torch.from_numpy(flat)


def encode(
    ids: Tensor,
    distances: Tensor,
    largest: Tensor,
    query: Tensor | None,
    gallery: Tensor | None,
    q_g: Tensor | None,
    q_q: Tensor | None,
    g_g: Tensor | None,
    metric: str,
    near: int,
    half: int,
    expand: int,
    square: bool,
    raw_weights: bool,
    store_half: bool,
) -> Sparse:
    """Weights of every item over its expanded neighbourhood, after the local query expansion."""
    rank, top = ids.numpy(), largest.numpy()
    kind: Any = np.float16 if store_half else np.float32
    rows, values = [], []
    x = torch.cat([query, gallery]) if query is not None and gallery is not None else None
    small = [_reciprocal(rank, j, half) for j in range(len(rank))]
    for i in range(len(rank)):
        own = _reciprocal(rank, i, near)
        joined = [h for h in (small[j] for j in own) if 3 * np.isin(h, own).sum() > 2 * len(h)]
        columns = np.unique(np.concatenate([own, *joined]))
        if x is not None:
            others = x[torch.from_numpy(columns).long()]
            if metric == "cosine":
                base = (1 - torch.cosine_similarity(x[i : i + 1].double(), others.double(), dim=1)).clamp_min(0)
            else:
                base = (x[i] - others).square().sum(1)
            base = torch.where(torch.from_numpy(columns) == i, torch.zeros_like(base), base).float()
        elif q_g is not None and q_q is not None and g_g is not None:
            base = _columns(q_g, q_q, g_g, i, i + 1)[0, torch.from_numpy(columns).long()]
        else:
            raise ValueError("rerank: expected features or distances")
        if raw_weights:
            weights = torch.softmax(-(2 if metric == "cosine" else 1) * base, 0)
        else:
            powered = base * base if square else base
            weights = torch.exp(-powered / float(top[i])) if top[i] > 0 else torch.ones_like(base)
            weights = weights / weights.sum()
        rows.append(columns)
        values.append(weights.numpy().astype(kind))
    if expand > 1:
        wide, sums = [], []
        for i in range(len(rank)):
            lists = [j for j in rank[i, :expand] if j >= 0]
            columns, place = np.unique(np.concatenate([rows[j] for j in lists]), return_inverse=True)
            total = np.zeros(len(columns), np.float32)
            np.add.at(total, place, np.concatenate([values[j] for j in lists]).astype(np.float32))
            wide.append(columns)
            sums.append((total / np.float32(len(lists))).astype(kind))
        rows, values = wide, sums
    return _csr(rows, values)


def jaccard(indptr: Tensor, columns: Tensor, values: Tensor, rows: int, first: int, store_half: bool) -> Sparse:
    """Jaccard distances below 1 of items [0, rows) to items [first, n)."""
    kind: Any = np.float16 if store_half else np.float32
    ptr, column, value = indptr.numpy(), columns.numpy(), values.numpy().astype(kind)
    n = len(ptr) - 1
    item = np.repeat(np.arange(n), np.diff(ptr))
    late = item >= first
    order = np.argsort(column[late], kind="stable")
    target, weight = (item[late] - first)[order], value[late][order]
    start = np.concatenate([[0], np.cumsum(np.bincount(column[late], minlength=n))])
    out_rows, out_values = [], []
    total = np.zeros(n - first, kind)
    for i in range(rows):
        met = []
        for e in range(ptr[i], ptr[i + 1]):
            some = slice(start[column[e]], start[column[e] + 1])
            total[target[some]] += np.minimum(value[e], weight[some])
            met.append(target[some])
        touched = np.unique(np.concatenate([np.empty(0, np.int64), *met]))
        m = total[touched]
        total[touched] = 0
        out_rows.append(touched.astype(np.int32))
        out_values.append(np.maximum(1 - m / (2 - m), 0))
    return _csr(out_rows, out_values)


# What the CUDA kernels hold in shared memory: a neighbourhood with all that may join it, and `expand` of those.
_SHARED_SET, _SHARED_EXPANSION = 16384, 8192


def exact_on(device: torch.device) -> torch.device:
    """Where lists of items on ``device`` are settled: there, or on the CPU where this build has no CUDA kernels."""
    return device if device.type == "cpu" or SETTLE.serving(device.type) == "native" else torch.device("cpu")


def sets_on(device: torch.device, near: int, half: int, expand: int) -> str:
    """Where the sets of items on ``device`` are made: "cuda" where the kernels serve and hold them, else "cpu"."""
    joined = near * (half + 1)
    fits = joined <= _SHARED_SET and (expand <= 1 or expand * joined <= _SHARED_EXPANSION)
    return "cuda" if device.type == "cuda" and fits and ENCODE.serving("cuda") == "native" else "cpu"


def final_(
    d: Tensor,
    largest: Tensor,
    indptr: Tensor,
    columns: Tensor,
    values: Tensor,
    lambda_: float,
    square: bool,
    blend_raw: bool,
    store_half: bool,
) -> None:
    """Base distances (Q, G) -> final distances, in place."""
    top, base = largest[: len(d), None], d
    if not blend_raw:
        powered = base * base if square else base
        base = torch.where(top > 0, powered / torch.where(top > 0, top, 1), 0)
    jaccard_part = torch.ones_like(d, dtype=torch.float16 if store_half else torch.float32)
    row = torch.repeat_interleave(torch.arange(len(d), device=d.device), indptr.diff())
    jaccard_part[row, columns.long()] = values.to(jaccard_part.dtype)
    rest = torch.tensor(1.0 - lambda_, dtype=jaccard_part.dtype, device=d.device)
    d.copy_((jaccard_part * rest).float() + base * lambda_)


def distances(
    query: Tensor,
    gallery: Tensor,
    largest: Tensor,
    indptr: Tensor,
    columns: Tensor,
    values: Tensor,
    metric: str,
    lambda_: float,
    square: bool,
    blend_raw: bool,
    store_half: bool,
) -> tuple[Tensor, Tensor]:
    """Final distances (Q, G), and status."""
    base, status = _base(query, gallery, metric)
    base = base.contiguous()
    rows = (t.to(base.device) for t in (largest, indptr, columns, values))
    FINAL.on[base.device.type](base, *rows, lambda_, square, blend_raw, store_half)
    return base, status


NEIGHBOURS = Dispatch(
    "rerank_neighbours",
    reference=neighbours,
    triton=None if _engine.TRITON_REASON else neighbours_on_kernels,
    triton_reason=_engine.TRITON_REASON,
    native_cuda=False,
)
SETTLE = Dispatch("rerank_settle", reference=settle, triton_reason="no Triton kernel")
NEIGHBOURS_FROM_DISTANCES = Dispatch(
    "rerank_neighbours_from_distances",
    reference=neighbours_from_distances,
    triton_reason="no Triton kernel",
    native_cuda=False,
)
ENCODE = Dispatch("rerank_encode", reference=encode, triton_reason="no Triton kernel")
JACCARD = Dispatch("rerank_jaccard", reference=jaccard, triton_reason="no Triton kernel")
FINAL = Dispatch("rerank_final_", reference=final_, triton_reason="no Triton kernel")
DISTANCES = Dispatch("rerank_distances", reference=distances, triton_reason="no Triton kernel", native_cuda=False)
