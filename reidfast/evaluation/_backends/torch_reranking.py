# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Re-ranking in plain torch and numpy, row block by row block: the part of `TorchTiles` that is not about ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidfast.evaluation._backends.base import Backend, FinalOptions, Neighbours, SetOptions, Sparse, encode_arguments
from reidfast.evaluation._backends.compiled import DeviceKernels
from reidfast.evaluation._core.features import Chunk
from reidfast.evaluation._core.options import COSINE, SQEUCLIDEAN

METRIC_NUMBERS = {"cosine": COSINE, "sqeuclidean": SQEUCLIDEAN}
_ROWS = 1024
_ROUNDING = 8.0 / (1 << 24)


def _nearest(d: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, order = torch.sort(d, dim=1, stable=True)
    return values[:, :k], order[:, :k].int()


def _columns(q_g: Tensor, q_q: Tensor, g_g: Tensor, begin: int, end: int) -> Tensor:
    """Columns [begin, end) of the whole [[q_q, q_g], [q_g^T, g_g]], transposed."""
    q = len(q_g)
    left = torch.cat([q_q[:, begin : min(end, q)], q_g[begin : min(end, q)].T])
    right = torch.cat([q_g[:, max(begin - q, 0) : max(end - q, 0)], g_g[:, max(begin - q, 0) : max(end - q, 0)]])
    return torch.cat([left.T, right.T])


def _reciprocal(rank: NDArray[np.int32], i: int, k: int) -> NDArray[np.int32]:
    nearest = rank[i, :k]
    nearest = nearest[nearest >= 0]
    return np.asarray(nearest[(rank[nearest, :k] == i).any(1)])


def _csr(rows: list[NDArray[np.int32]], values: list[NDArray[np.floating]]) -> Sparse:
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    columns = np.concatenate([np.empty(0, np.int32), *rows]).astype(np.int32)
    flat = np.concatenate([np.empty(0, np.float32), *values]).astype(np.float32)
    return torch.from_numpy(indptr), torch.from_numpy(columns), torch.from_numpy(flat)


class TorchReranking(Backend):
    """Re-ranking on the distances that `chunk_distances` makes.

    ``kernels``: the compiled kernels of the features' device, or None.
    """

    def __init__(self, kernels: DeviceKernels | None = None) -> None:
        self.kernels = kernels

    def neighbours(
        self, op: str, query: Tensor, gallery: Tensor, k: int, metric: str, square: bool, part: int, parts: int
    ) -> Neighbours:
        lists: list[tuple[Tensor, Tensor, Tensor]] = []
        number = -1
        sides = [(side, x) for side, x in enumerate((query, gallery)) if len(x)]
        for side, x in sides:
            for begin in range(0, len(x), _ROWS):
                number += 1
                rows = x[begin : begin + _ROWS]
                if number % parts != part:
                    nobody = rows.new_full((len(rows), k), torch.inf)
                    lists.append((torch.full_like(nobody, -1, dtype=torch.int32), nobody, rows.new_zeros(len(rows))))
                    continue
                pieces = []
                for other, y in sides:
                    high = self.full_height(rows, _ROWS)
                    chunk = Chunk(op, METRIC_NUMBERS[metric], high, y, first_query=begin, sides=(side, other))
                    pieces.append(self.chunk_distances(chunk)[: len(rows)].clamp_min(0))
                block = torch.cat(pieces, 1)
                block = block * block if square else block
                own = torch.arange(len(block), device=block.device)
                block[own, own + begin + (len(query) if side else 0)] = -1
                values, ids = _nearest(block, k)
                lists.append((ids, values.clamp_min(0), block.amax(1).clamp_min(0)))
        if not lists:
            return Neighbours(query.new_empty(0, k).int(), query.new_empty(0, k), query.new_empty(0), None)
        ids, values, largest = (torch.cat(blocks) for blocks in zip(*lists, strict=True))
        return Neighbours(ids, values, largest, None)

    def neighbours_from_distances(self, q_g: Tensor, q_q: Tensor, g_g: Tensor, k: int, square: bool) -> Neighbours:
        n = sum(q_g.shape)
        ids, values, largest = torch.empty(n, k, dtype=torch.int32), torch.empty(n, k), torch.empty(n)
        for begin in range(0, n, _ROWS):
            d = _columns(q_g, q_q, g_g, begin, min(n, begin + _ROWS))
            d = d * d if square else d
            values[begin : begin + _ROWS], ids[begin : begin + _ROWS] = _nearest(d, k)
            largest[begin : begin + _ROWS] = d.amax(1).clamp_min(0)
        return Neighbours(ids, values, largest, None)

    def settle(
        self, query: Tensor, gallery: Tensor, ids: Tensor, distances: Tensor, keep: int, metric: str, square: bool
    ) -> tuple[Tensor, Tensor]:
        if self.kernels is not None:
            ids, distances = self.kernels.settle(query, gallery, ids, distances, keep, metric, square)
            return ids, distances
        # Entries whose base distances follow within _ROUNDING (|x|^2 + |y|^2) are taken by their distance in float64,
        # then by id. The item itself stays first.
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
                    place = torch.from_numpy(order).to(ids.device)
                    value = exact[place].float()
                    ids[i, begin:end] = others[place].int()
                    distances[i, begin:end] = value * value if square else value
                begin = end
        return ids[:, :keep].contiguous(), distances[:, :keep].contiguous()

    def encode(
        self, lists: Neighbours, features: tuple[Tensor, Tensor] | None,
        distances: tuple[Tensor, Tensor, Tensor] | None, options: SetOptions,
    ) -> Sparse:  # fmt: skip
        if self.kernels is not None:
            indptr, columns, values = self.kernels.encode(*encode_arguments(lists, features, distances, options))
            return indptr, columns, values
        rank, top = lists.ids.numpy(), lists.largest.numpy()
        metric = options.metric
        kind: Any = np.float16 if options.store_half else np.float32
        sets: list[NDArray[np.int32]] = []
        weighted: list[NDArray[np.floating]] = []
        x = None if features is None else torch.cat(features)
        small = [_reciprocal(rank, j, options.k1_half) for j in range(len(rank))]
        for i in range(len(rank)):
            own = _reciprocal(rank, i, options.k1)
            joined = [h for h in (small[j] for j in own) if 3 * np.isin(h, own).sum() > 2 * len(h)]
            members = np.unique(np.concatenate([own, *joined]))
            if x is not None:
                others = x[torch.from_numpy(members).long()]
                if metric == "cosine":
                    base = (1 - torch.cosine_similarity(x[i : i + 1].double(), others.double(), dim=1)).clamp_min(0)
                else:
                    base = (x[i] - others).square().sum(1)
                base = torch.where(torch.from_numpy(members) == i, torch.zeros_like(base), base).float()
            else:
                assert distances is not None
                base = _columns(*distances, i, i + 1)[0, torch.from_numpy(members).long()]
            if options.raw_weights:
                weights = torch.softmax(-(2 if metric == "cosine" else 1) * base, 0)
            else:
                powered = base * base if options.square else base
                weights = torch.exp(-powered / float(top[i])) if top[i] > 0 else torch.ones_like(base)
                weights = weights / weights.sum()
            sets.append(members)
            weighted.append(weights.numpy().astype(kind))
        if options.k2 > 1:
            expanded, means = [], []
            for i in range(len(rank)):
                nearest = [j for j in rank[i, : options.k2] if j >= 0]
                union, place = np.unique(np.concatenate([sets[j] for j in nearest]), return_inverse=True)
                total = np.zeros(len(union), np.float32)
                np.add.at(total, place, np.concatenate([weighted[j] for j in nearest]).astype(np.float32))
                expanded.append(union)
                means.append((total / np.float32(len(nearest))).astype(kind))
            sets, weighted = expanded, means
        return _csr(sets, weighted)

    def jaccard(self, weights: Sparse, rows: int, first: int, store_half: bool) -> Sparse:
        if self.kernels is not None:
            indptr, columns, values = self.kernels.jaccard(*weights, rows, first, store_half)
            return indptr, columns, values
        indptr, columns, values = weights
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
                meets = slice(start[column[e]], start[column[e] + 1])
                total[target[meets]] += np.minimum(value[e], weight[meets])
                met.append(target[meets])
            touched = np.unique(np.concatenate([np.empty(0, np.int64), *met]))
            m = total[touched]
            total[touched] = 0
            out_rows.append(touched.astype(np.int32))
            out_values.append(np.maximum(1 - m / (2 - m), 0))
        return _csr(out_rows, out_values)

    def final_(self, base: Tensor, largest: Tensor, jaccard: Sparse, options: FinalOptions) -> None:
        if self.kernels is not None:
            self.kernels.final_(base, largest, *jaccard, *options)
            return
        indptr, columns, values = jaccard
        top, scaled = largest[: len(base), None], base
        if not options.blend_raw:
            powered = base * base if options.square else base
            scaled = torch.where(top > 0, powered / torch.where(top > 0, top, 1), 0)
        part = torch.ones_like(base, dtype=torch.float16 if options.store_half else torch.float32)
        row = torch.repeat_interleave(torch.arange(len(base), device=base.device), indptr.diff())
        part[row, columns.long()] = values.to(part.dtype)
        rest = torch.tensor(1.0 - options.lambda_, dtype=part.dtype, device=base.device)
        base.copy_((part * rest).float() + scaled * options.lambda_)

    def final_distances(
        self, query: Tensor, gallery: Tensor, largest: Tensor, jaccard: Sparse, metric: str, options: FinalOptions
    ) -> Tensor:
        base = self.chunk_distances(Chunk("rerank", METRIC_NUMBERS[metric], query, gallery)).clamp_min(0).contiguous()
        self.final_(base, largest, jaccard, options)
        return base
