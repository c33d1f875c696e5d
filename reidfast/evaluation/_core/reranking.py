# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The steps that `rerank`, `rank_reranked`, `rerank_distances` and `jaccard_graph` share, and their result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidfast._arrays import like
from reidfast._shards import Facts, Shards, raise_everywhere
from reidfast.evaluation._backends.base import FinalOptions, Neighbours, SetOptions, Sparse
from reidfast.evaluation._core.options import check_count
from reidfast.evaluation._core.plan import Plan
from reidfast.evaluation._core.rerank_variants import RerankVariant, half_neighbours

_SPARE = 4  # neighbours more than are wanted, so that rounding does not decide which are last


@dataclass(frozen=True)
class RerankSettings:
    """A variant with k1 and k2, in numbers."""

    variant: RerankVariant
    k1: int  # neighbours, the item itself included
    k1_half: int
    k2: int
    list_size: int  # neighbours that are looked for

    @classmethod
    def of(cls, variant: RerankVariant, k1: int, k2: int, items: int) -> RerankSettings:
        """For a number of items."""
        wanted = max(k1 + variant.extra, k2) if variant.extra else k1  # faiss codes know nothing beyond k1
        return cls(variant, k1 + variant.extra, half_neighbours(variant, k1), k2, max(1, min(wanted, items)))

    @property
    def square(self) -> bool:
        """Whether base distances are squared."""
        return self.variant.power == 2

    @property
    def set_options(self) -> SetOptions:
        """What backends want to know."""
        v = self.variant
        return SetOptions(
            v.metric, self.k1, self.k1_half, self.k2, self.square, v.weight == "raw", v.storage == "float16"
        )


def check_ks(op: str, k1: Any, k2: Any) -> tuple[int, int]:
    """Both, checked."""
    return check_count(op, "k1", k1), check_count(op, "k2", k2)


def agree_on(facts: Facts, variant: RerankVariant, k1: int, k2: int, **others: Any) -> None:
    """What processes that share items must pass alike."""
    facts.add(variant=replace(variant, metric="cosine"), metric=variant.metric, k1=k1, k2=k2, **others)


def check_lambda(op: str, lambda_: Any) -> float:
    """``lambda_`` as a float in [0, 1]."""
    value = float(lambda_)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{op}: expected lambda_ in [0, 1] (the weight of the original distance), got {lambda_!r}")
    return value


def _merge(ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
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


def find_neighbours(
    op: str, shards: Shards, plan: Plan, query: Tensor, gallery: Tensor, settings: RerankSettings
) -> Neighbours:
    """Lists and largest distances of all items; each process makes part of the product."""
    metric, square = settings.variant.metric, settings.square
    size = min(settings.list_size + _SPARE, max(1, len(query) + len(gallery)))
    with raise_everywhere(shards):
        lists = plan.features.neighbours(op, query, gallery, size, metric, square, shards.index, shards.count)
    ids, distances, largest, base = lists
    if shards.count > 1:
        shape = (shards.count, *ids.shape)
        ids, distances, largest = (shards.concatenate(x) for x in lists[:3])
        ids, distances = _merge(ids.view(shape), distances.view(shape))
        largest = largest.view(shards.count, -1).amax(0)
    device = plan.lists_device(query.device)
    keep = min(settings.list_size, ids.shape[1])
    x, y, ids, distances = (t.to(device).contiguous() for t in (query, gallery, ids, distances))
    ids, distances = plan.on(device).settle(x, y, ids, distances, keep, metric, square)
    return Neighbours(ids, distances, largest, base)


def encode(plan: Plan, lists: Neighbours, query: Tensor, gallery: Tensor, settings: RerankSettings) -> Sparse:
    """Weighted sets of all items."""
    options = settings.set_options
    device = plan.sets_device(query.device, options)
    ids, distances, largest = (x.to(device).contiguous() for x in lists[:3])
    placed = Neighbours(ids, distances, largest, None)
    return plan.on(device).encode(placed, (query.to(device), gallery.to(device)), None, options)


def jaccard_arrays(
    plan: Plan, weights: Sparse, rows: int, first: int, settings: RerankSettings
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Jaccard distances below 1 of items [0, rows) to items [first, n): CSR in numpy."""
    sparse = plan.on(weights[0].device).jaccard(weights, rows, first, settings.set_options.store_half)
    indptr, indices, values = (x.cpu().numpy() for x in sparse)
    return indptr, indices, values


@dataclass(frozen=True, eq=False)
class Reranked:
    """Re-ranked distances of Q queries to G gallery items, kept sparse.

    The final distance is ``(1 - lambda_) * J + lambda_ * d`` with J = 1 wherever the sparse part has no entry.

    Attributes:
        indptr: int64 (Q + 1,), where each query's entries begin.
        indices: int32 (entries,), gallery rows whose Jaccard distance is below 1, ascending per query.
        jaccard: float32 (entries,), their Jaccard distances.
        largest: float32 (Q,), the normaliser of each query: its largest distance to any item (to the power of the
            variant).
        lambda_: Weight of the original distance.
        variant: The options used, with the metric in force.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    jaccard: NDArray[np.float32]
    largest: NDArray[np.float32]
    lambda_: float
    variant: RerankVariant
    _plan: Plan
    _query: Tensor
    _gallery: Tensor
    _source: Any  # what the user passed, whose kind `dense` takes
    _distances: Tensor | None = None  # base distances that were passed
    _product: list[Tensor] = field(default_factory=list)  # base distances, none or one: the first `dense` takes them

    @property
    def shape(self) -> tuple[int, int]:
        """(Q, G)."""
        if self._distances is not None:
            return int(self._distances.shape[0]), int(self._distances.shape[1])
        return len(self._query), len(self._gallery)

    def dense_rows(self, begin: int, end: int) -> Tensor:
        """Final distances of queries [begin, end): float32 (end - begin, G) where the features are.

        The bits of ``.dense()``.
        """
        base = self._product[0] if self._product else self._distances
        if base is not None:
            return self._finish(base[begin:end].clone(), begin, end)
        backend = self._plan.features
        query = backend.full_height(self._query[begin:end], self.shape[0])
        rows = self._rows(begin, end, len(query))
        distances = backend.final_distances(query, self._gallery, *rows, self.variant.metric, self._options())
        return distances[: end - begin]

    def _rows(self, begin: int, end: int, height: int) -> tuple[Tensor, Sparse]:
        """Largest distances and sparse rows of queries [begin, end), empty ones behind them up to ``height``."""
        first, last = int(self.indptr[begin]), int(self.indptr[end])
        more = height - (end - begin)
        starts = np.pad(self.indptr[begin : end + 1] - first, (0, more), mode="edge")
        largest = np.pad(self.largest[begin:end], (0, more))
        arrays = (largest, starts, self.indices[first:last], self.jaccard[first:last])
        device = self._gallery.device if self._distances is None else self._distances.device
        top, *sparse = (torch.from_numpy(x).to(device) for x in arrays)
        return top, (sparse[0], sparse[1], sparse[2])

    def _options(self) -> FinalOptions:
        v = self.variant
        return FinalOptions(self.lambda_, v.power == 2, v.blend == "raw", v.storage == "float16")

    def _finish(self, base: Tensor, begin: int, end: int) -> Tensor:
        """Base distances of queries [begin, end), turned into final ones in place."""
        self._plan.on(base.device).final_(base, *self._rows(begin, end, end - begin), self._options())
        return base

    def dense(self) -> Any:
        """Final distances float32 [Q, G], of the kind (and on the device) of the query features.

        Called again, it makes the same bits again, a new array each time. Not for several threads at once: the first
        call writes over base distances that were kept.
        """
        everything = 0, self.shape[0]
        final = self._finish(self._product.pop(), *everything) if self._product else self.dense_rows(*everything)
        return like(self._source, final)

    def sparse_jaccard(self) -> scipy.sparse.csr_matrix:
        """The Jaccard part: csr float32 [Q, G]; what is absent is 1."""
        return scipy.sparse.csr_matrix((self.jaccard, self.indices, self.indptr), shape=self.shape)


def rerank_features(
    op: str, shards: Shards, plan: Plan, query: Tensor, gallery: Tensor, settings: RerankSettings, lambda_: float,
    source: Any,
) -> Reranked:  # fmt: skip
    """Re-rank float32 matrices that are read and checked; ``gallery`` is the whole one in every process."""
    lists = find_neighbours(op, shards, plan, query, gallery, settings)
    n = len(query)
    jaccard = jaccard_arrays(plan, encode(plan, lists, query, gallery, settings), n, n, settings)
    product = [] if lists.base is None else [lists.base]
    largest = lists.largest[:n].cpu().numpy().copy()
    return Reranked(*jaccard, largest, lambda_, settings.variant, plan, query, gallery, source, None, product)
