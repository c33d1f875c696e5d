# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""k-reciprocal re-ranking and Jaccard neighbour graphs in memory linear in the number of items."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidfast.evaluation import _rerank_engine as engine
from reidfast.evaluation import ranking
from reidfast.evaluation._distances import together
from reidfast.evaluation._groups import Solo, ranks_of
from reidfast.evaluation._inputs import Features, Labels, check_count, check_pair, read_features, read_labels
from reidfast.evaluation._metrics import PROTOCOLS, Counted, Ranking, score
from reidfast.evaluation._pairs import find_pairs
from reidfast.evaluation._rerank_variants import RerankVariant, half_neighbours, resolve_variant

__all__ = ["Reranked", "jaccard_graph", "rank_reranked", "rerank", "rerank_distances"]

_BLOCK_BYTES = 128 << 20  # final distances made at a time by rank_reranked
_PROBLEM = {1: "a NaN or infinite value", 2: "values too large for float32 distances"}


@dataclass(frozen=True)
class _Settings:
    """What the engine wants to know, from a variant and k1, k2."""

    variant: RerankVariant
    near: int
    half: int
    expand: int
    list_size: int

    @classmethod
    def of(cls, op: str, variant: RerankVariant, k1: int, k2: int, items: int) -> _Settings:
        k1, k2 = check_count(op, "k1", k1), check_count(op, "k2", k2)
        near, half = k1 + variant.extra, half_neighbours(variant, k1)
        wanted = max(near, k2) if variant.extra else k1  # the faiss codes have nothing beyond their k1 neighbours
        return cls(variant, near, half, k2, max(1, min(wanted, items)))

    @property
    def square(self) -> bool:
        return self.variant.power == 2

    @property
    def store_half(self) -> bool:
        return self.variant.storage == "float16"

    def encode_args(self) -> tuple[Any, ...]:
        raw = self.variant.weight == "raw"
        return (self.variant.metric, self.near, self.half, self.expand, self.square, raw, self.store_half)


def as_matrix(features: Features) -> Tensor:
    """All rows as one contiguous float32 tensor on their device; no copy where that is what they are."""
    chunks = [c.float() for c in features.chunks]
    return (chunks[0] if len(chunks) == 1 else torch.cat(chunks)).contiguous()


def like(x: Any, result: Tensor) -> Any:
    """``result`` as the kind of array that ``x`` is: torch (on its device), numpy or cupy."""
    if isinstance(x, Tensor):
        return result.to(x.device)
    if hasattr(x, "__cuda_array_interface__"):
        import cupy

        return cupy.from_dlpack(result.cuda())
    return result.cpu().numpy()


def raise_bad_row(op: str, status: Tensor) -> None:
    """ValueError for the row where the engine stopped, if it did."""
    side, kind, row = status.tolist()
    if kind:
        name = "" if op == "jaccard_graph" else ("query ", "gallery ")[side]
        raise ValueError(f"{op}: expected finite {name}features, got {_PROBLEM[kind]} in row {row}")


def _check_lambda(op: str, lambda_: Any) -> float:
    value = float(lambda_)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{op}: expected lambda_ in [0, 1] (the weight of the original distance), got {lambda_!r}")
    return value


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
    _query: Tensor
    _gallery: Tensor
    _distances: Tensor | None  # base distances that were handed in
    _kept: list[Tensor]  # base distances kept from the product, none or one: the first `dense` writes over them
    _kind: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(Q, G)."""
        if self._distances is not None:
            return int(self._distances.shape[0]), int(self._distances.shape[1])
        return len(self._query), len(self._gallery)

    def dense_rows(self, begin: int, end: int) -> Tensor:
        """Final distances of queries [begin, end): float32 (end - begin, G) where the features are.

        The bits of ``.dense()``, as long as the rows asked for and Q lie on one side of 32 (tiles of another height).
        """
        base = self._kept[0] if self._kept else self._distances
        if base is not None:
            return self._finish(base[begin:end].clone(), begin, end)
        query = self._query[begin:end]
        distances, status = engine.DISTANCES.on[query.device.type](
            query, self._gallery, *self._rows(begin, end), self.variant.metric, *self._options()
        )
        raise_bad_row("rerank", status)
        return distances

    def _rows(self, begin: int, end: int) -> list[Tensor]:
        """Largest distances and sparse rows of queries [begin, end)."""
        first, last = int(self.indptr[begin]), int(self.indptr[end])
        starts = self.indptr[begin : end + 1] - first
        return [
            torch.from_numpy(t)
            for t in (self.largest[begin:end], starts, self.indices[first:last], self.jaccard[first:last])
        ]

    def _options(self) -> tuple[float, bool, bool, bool]:
        v = self.variant
        return self.lambda_, v.power == 2, v.blend == "raw", v.storage == "float16"

    def _finish(self, base: Tensor, begin: int, end: int) -> Tensor:
        """Base distances of queries [begin, end), turned into final ones in place."""
        rows = (t.to(base.device) for t in self._rows(begin, end))
        engine.FINAL.on[base.device.type](base, *rows, *self._options())
        return base

    def dense(self) -> Any:
        """Final distances float32 [Q, G], of the kind (and on the device) of the query features.

        Called again, it makes the same bits again, a new array each time. Not for several threads at once: the first
        call writes over base distances that were kept.
        """
        whole = 0, self.shape[0]
        made = self._finish(self._kept.pop(), *whole) if self._kept else self.dense_rows(*whole)
        return like(self._kind, made)

    def sparse_jaccard(self) -> scipy.sparse.csr_matrix:
        """The Jaccard part: csr float32 [Q, G]; what is absent is 1."""
        return scipy.sparse.csr_matrix((self.jaccard, self.indices, self.indptr), shape=self.shape)


def _gather_rows(ranks: Solo, x: Tensor) -> Tensor:
    """The rows of all ranks on each."""
    if ranks.size == 1:
        return x
    return torch.from_numpy(ranks.concatenate(x.cpu().numpy())).to(x.device)


_SPARE = 4  # neighbours more than are wanted, so that rounding does not decide which are last


def _neighbours(
    op: str, ranks: Solo, x: Tensor, y: Tensor, settings: _Settings
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
    """Lists and largest distances of all items; each rank takes part of the product. Base distances where kept."""
    find = engine.NEIGHBOURS.on[x.device.type]
    metric, square = settings.variant.metric, settings.square
    size = min(settings.list_size + _SPARE, max(1, len(x) + len(y)))
    with together(ranks):
        ids, near, largest, kept, status = find(x, y, size, metric, square, ranks.rank, ranks.size)
        raise_bad_row(op, status)
    if ranks.size > 1:
        shape = (ranks.size, *ids.shape)
        gathered = [torch.from_numpy(ranks.concatenate(t.cpu().numpy())).to(x.device) for t in (ids, near, largest)]
        ids, near = engine.merge_neighbours(gathered[0].reshape(shape), gathered[1].reshape(shape))
        largest = gathered[2].reshape(ranks.size, -1).amax(0)
    device = engine.exact_on(x.device)
    lists = [t.to(device).contiguous() for t in (x, y, ids, near)]
    ids, near = engine.SETTLE.on[device.type](*lists, min(settings.list_size, ids.shape[1]), metric, square)
    return (ids, near, largest), kept if len(kept) else None


def rerank(
    query: Any,
    gallery: Any,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    variant: str | RerankVariant = "zhong",
    metric: str | None = None,
    group: Any = None,
) -> Reranked:
    """k-reciprocal re-ranking of features, without a matrix of all pairs.

    With D(i, j) = b(i, j)^power over all Q + G items, Dn(i, j) = D(i, j) / max_l D(i, l) and N(i, k) the k nearest:

        R(i, k)  = { j in N(i, k) : i in N(j, k) },  k = k1 + extra
        R*(i)    = R(i, k) joined with every H(j) = R(j, half), j in R(i, k), of which |H(j) & R(i, k)| > 2/3 |H(j)|
        V(i, j)  = exp(-Dn(i, j)) for j in R*(i), else 0, rows divided by their sum
        V'(i)    = mean of V over the k2 nearest of i
        J(i, j)  = 1 - m / (2 - m),  m = sum_l min(V'(i, l), V'(j, l))
        final    = (1 - lambda_) J + lambda_ Dn

    Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
    `RerankVariant` says by formula where the published codes differ; ``docs/reranking.md`` compares them.

    Args:
        query: Features (Q, D), torch, numpy or cupy, float16 to float64 (computed in float32), files or shards.
        gallery: Features (G, D).
        k1: Neighbours considered.
        k2: Neighbours averaged in the local query expansion; 1 turns it off.
        lambda_: Weight of the original distance.
        variant: "zhong", "torchreid", "fastreid", "transreid", "openunreid" or a `RerankVariant`.
        metric: "sqeuclidean" (also "euclidean"; every code re-ranks squared distances) or "cosine"; None = the
            variant's own: cosine for "fastreid", else squared Euclidean.
        group: torch.distributed process group over which the gallery is sharded: every rank passes all queries and its
            part, and gets the whole result, bit for bit that of one process holding the parts in rank order. Every
            gallery row is compared with every other, so the features travel to all ranks; the product is shared out.

    Returns:
        Reranked: the sparse parts, and ``.dense()``.

    Raises:
        ValueError: shapes that do not fit, an empty gallery, a row that is not finite, k1 or k2 below 1, lambda_
            outside [0, 1], unknown variant or metric.
        TypeError: features that are not floating point.

    Notes:
        An item is its own nearest neighbour; other ties go to the lowest item, queries before gallery. Neighbours whose
        order float32 cannot tell are compared in float64, so that rounding does not decide who is a neighbour. Lists
        shorter than k1 (few items) are used as they are. The result does not depend on the number of threads.
        Cost: half of the symmetric product (Q+G)^2 D, then O((Q+G) k1^2). Memory beside the features and the result:
        12 bytes x (Q + G) x k1, the sparse rows, 48 MB of tiles at D = 2048, and base distances (Q, G) where they take
        no more than 256 MB (the first ``.dense()`` writes over them); larger ones are made again for final distances.

    Example:
        >>> x = torch.eye(4).repeat(3, 1)
        >>> rerank(x[:4], x[4:], k1=2, k2=1).dense().argmin(1).tolist()
        [0, 1, 2, 3]
    """
    op = "rerank"
    ranks = ranks_of(op, group)
    with together(ranks):
        lambda_ = _check_lambda(op, lambda_)
        options = resolve_variant(op, variant, metric)
        q, g = read_features(op, "query", query), read_features(op, "gallery", gallery)
        if g.n or ranks.size == 1:
            check_pair(op, q, g)
        x = as_matrix(q)
        y = as_matrix(g).to(x.device)
    y = _gather_rows(ranks, y)
    settings = _Settings.of(op, options, k1, k2, len(x) + len(y))
    found, kept = _neighbours(op, ranks, x, y, settings)
    v = _encode(found, x, y, settings)
    jaccard = engine.JACCARD.on[v[0].device.type](*v, q.n, q.n, settings.store_half)
    largest = found[2]
    return _reranked(jaccard, largest[: q.n], lambda_, options, x, y, query, kept=kept)


def rank_reranked(
    query: Any,
    gallery: Any,
    query_ids: Any,
    gallery_ids: Any,
    query_cameras: Any = None,
    gallery_cameras: Any = None,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    variant: str | RerankVariant = "zhong",
    metric: str | None = None,
    protocol: str = "market1501",
    average_precision: str | None = None,
    max_rank: int = 50,
    precision: str = "float32",
    validate: bool = False,
    group: Any = None,
) -> Ranking:
    """Evaluate re-ranked features: CMC, average precision and INP, without an array of all queries and gallery rows.

    Exactly ``rank_distances(rerank(query, gallery, ...).dense(), ...)``, ties included: the final distances that
    ``.dense()`` shows are made for some queries at a time, compared, and dropped.

    Args:
        query: As in `rerank`.
        gallery: As in `rerank`.
        query_ids: As in `rank`.
        gallery_ids: As in `rank`.
        query_cameras: As in `rank`.
        gallery_cameras: As in `rank`.
        k1: As in `rerank`.
        k2: As in `rerank`.
        lambda_: As in `rerank`; 0 compares Jaccard distances alone, with all that share nothing tied at 1.
        variant: As in `rerank`.
        metric: As in `rerank`: None is the variant's own, squared Euclidean for all but "fastreid".
        protocol: As in `rank`.
        average_precision: As in `rank`.
        max_rank: As in `rank`.
        precision: "float32" only.
        validate: Look for NaN and inf in CUDA features beforehand.
        group: As in `rerank`; the counting is shared out over queries.

    Returns:
        Ranking, numpy on the host.

    Raises:
        ValueError, TypeError: as `rank` and `rerank`.
        NotImplementedError: precision other than float32.

    Notes:
        Memory beside the features: that of `rerank`, and 128 MB of final distances at a time.
    """
    op = "rank_reranked"
    kind = ranking._check_options(op, protocol, average_precision, precision)
    max_rank = check_count(op, "max_rank", max_rank)
    if precision != "float32":
        raise NotImplementedError(f"{op}: precision {precision!r} is not served; use precision='float32'")
    ranks = ranks_of(op, group)
    with together(ranks):
        q, g = read_features(op, "query", query), read_features(op, "gallery", gallery)
        labels = read_labels(op, q.n, g.n, query_ids, gallery_ids, query_cameras, gallery_cameras)
    labels.gallery = ranks.concatenate(labels.gallery)
    if labels.gallery_cameras is not None:
        labels.gallery_cameras = ranks.concatenate(labels.gallery_cameras)
    ranking._need_matches(op, labels, find_pairs(labels), Solo())
    if validate:
        for features in (q, g):
            if any(not bool(torch.isfinite(chunk).all()) for chunk in features.chunks):
                raise ValueError(f"{op}: expected finite {features.name} features, got NaN or inf")
    result = rerank(query, gallery, k1=k1, k2=k2, lambda_=lambda_, variant=variant, metric=metric, group=group)
    parts: list[Counted] = []
    shots: list[NDArray[np.float64]] = []
    for begin, end in _query_steps(q.n, len(labels.gallery))[ranks.rank :: ranks.size]:
        some = Labels(
            labels.query[begin:end],
            labels.gallery,
            None if labels.query_cameras is None else labels.query_cameras[begin:end],
            labels.gallery_cameras,
        )
        counted, shot = _count(op, result.dense_rows(begin, end), some, PROTOCOLS[protocol].single_shot, max_rank)
        counted.query += begin
        parts.append(counted)
        shots.append(shot)
    names = ("query", "distance", "below", "equal", "before")
    if ranks.size > 1:  # a rank may have no step
        none = np.empty(0, np.int64)
        parts.append(Counted(0, none, np.empty(0, np.float32), none, none, none))
    fields: list[NDArray[Any]] = [
        ranks.concatenate(np.concatenate([getattr(part, name) for part in parts])) for name in names
    ]
    order = np.argsort(fields[0], kind="stable")  # a query is counted by one rank, in one run
    fields = [field[order] for field in fields]
    whole = Counted(q.n, *fields)
    if not PROTOCOLS[protocol].single_shot:
        return score(whole, kind, max_rank)
    curves = np.zeros((q.n, max_rank))
    for (begin, end), shot in zip(_query_steps(q.n, len(labels.gallery))[ranks.rank :: ranks.size], shots, strict=True):
        curves[begin:end] = shot
    return score(whole, kind, max_rank, ranks.add(curves))


def _query_steps(queries: int, galleries: int) -> list[tuple[int, int]]:
    """Queries [begin, end) worked on together: as many as fit _BLOCK_BYTES, never a rest of 32 or fewer.

    Up to 32 queries are served by tiles of another height, whose last bits may differ.
    """
    step = max(128, _BLOCK_BYTES // (4 * max(1, galleries)) // 128 * 128)
    ends = list(range(step, queries, step)) + [queries]
    if len(ends) > 1 and ends[-1] - ends[-2] <= 32:
        del ends[-2]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _count(op: str, d: Tensor, labels: Labels, single_shot: bool, max_rank: int) -> tuple[Counted, Any]:
    """What `rank_distances` counts in whole rows of distances."""
    solo = Solo()
    pairs = find_pairs(labels)
    thresholds, counts = ranking.count_matrix(op, d, labels, pairs, solo)
    shot = ranking._single_shot_matrix(op, d, labels, pairs, thresholds, solo, max_rank) if single_shot else None
    return Counted(len(d), thresholds.query, thresholds.distance, *counts), shot


def _encode(found: tuple[Tensor, ...], x: Tensor, y: Tensor, settings: _Settings) -> tuple[Tensor, Tensor, Tensor]:
    device = engine.sets_on(x.device, settings.near, settings.half, settings.expand)
    where = x.device if device == "cuda" else device
    lists = [t.to(where).contiguous() for t in found]
    v = engine.ENCODE.on[device](*lists, x.to(where), y.to(where), None, None, None, *settings.encode_args())
    return v[0], v[1], v[2]


def _reranked(
    jaccard: tuple[Tensor, Tensor, Tensor],
    largest: Tensor,
    lambda_: float,
    options: RerankVariant,
    query: Tensor,
    gallery: Tensor,
    kind: Any,
    distances: Tensor | None = None,
    kept: Tensor | None = None,
) -> Reranked:
    indptr, indices, values = (t.cpu().numpy() for t in jaccard)
    top = largest.cpu().numpy().copy()
    held = [] if kept is None else [kept]
    return Reranked(indptr, indices, values, top, lambda_, options, query, gallery, distances, held, kind)


def rerank_distances(
    q_g: Any,
    q_q: Any,
    g_g: Any,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    variant: str | RerankVariant = "zhong",
) -> Reranked:
    """k-reciprocal re-ranking of base distances that are already there: (Q, G), (Q, Q) and (G, G).

    The matrices are read once and never copied (float32, contiguous) or concatenated. Item i is described by column i
    of [[q_q, q_g], [q_g^T, g_g]], as in the published codes; all ties go to the lowest item, itself included. For
    "zhong" the distances are squared Euclidean ones. See `rerank`.
    """
    op = "rerank_distances"
    lambda_ = _check_lambda(op, lambda_)
    options = resolve_variant(op, variant, None)
    blocks = [read_features(op, n, x) for n, x in (("q_g", q_g), ("q_q", q_q), ("g_g", g_g))]
    qg, qq, gg = (as_matrix(b).cpu() for b in blocks)
    if qq.shape != (len(qg), len(qg)) or gg.shape != (qg.shape[1], qg.shape[1]):
        raise ValueError(
            f"{op}: expected q_q (Q, Q) and g_g (G, G) to match q_g {tuple(qg.shape)}, "
            f"got {tuple(qq.shape)} and {tuple(gg.shape)}"
        )
    settings = _Settings.of(op, options, k1, k2, len(qg) + len(gg))
    ids, near, largest = engine.NEIGHBOURS_FROM_DISTANCES.on["cpu"](qg, qq, gg, settings.list_size, settings.square)
    v = engine.ENCODE.on["cpu"](ids, near, largest, None, None, qg, qq, gg, *settings.encode_args())
    jaccard = engine.JACCARD.on["cpu"](*v, len(qg), len(qg), settings.store_half)
    return _reranked(jaccard, largest[: len(qg)], lambda_, options, qg[:, :0], gg[:, :0], q_g, distances=qg)


def jaccard_graph(
    features: Any,
    *,
    k1: int = 30,
    k2: int = 6,
    variant: str | RerankVariant = "openunreid",
    metric: str | None = None,
    group: Any = None,
) -> scipy.sparse.csr_matrix:
    """Jaccard distances among all items as a sparse graph, for clustering.

    The J of `rerank` between every pair of one set of features; with the default variant, the distance that OpenUnReID,
    SpCL and cluster-contrast cluster by: k1 nearest items (itself included), weights softmax(-||x - y||^2).

    Args:
        features: (N, D), torch, numpy or cupy.
        k1: Neighbours considered.
        k2: Neighbours averaged in the local query expansion; 1 turns it off.
        variant: As in `rerank`.
        metric: As in `rerank`.
        group: As in `rerank`; every rank passes its part of the features and gets the whole graph.

    Returns:
        csr_matrix float32 (N, N), symmetric up to rounding: every distance below 1, the zero diagonal stored
        explicitly; what is absent has distance 1. ``sklearn.cluster.DBSCAN(metric="precomputed")`` takes it as it is.

    Raises:
        ValueError, TypeError: as `rerank`.

    Notes:
        Memory O(N k1) + the graph; the dense N x N never exists. Independent of the number of threads.

    Example:
        >>> graph = jaccard_graph(torch.eye(3).repeat(2, 1), k1=2, k2=1)
        >>> graph.nnz, float(graph[0, 3])
        (12, 0.0)
    """
    op = "jaccard_graph"
    ranks = ranks_of(op, group)
    with together(ranks):
        options = resolve_variant(op, variant, metric)
        x = as_matrix(read_features(op, "features", features))
    x = _gather_rows(ranks, x)
    n = len(x)
    settings = _Settings.of(op, options, k1, k2, n)
    found, _ = _neighbours(op, ranks, x, x[:0], settings)
    v = _encode(found, x, x[:0], settings)
    jaccard = engine.JACCARD.on[v[0].device.type](*v, n, 0, settings.store_half)
    indptr, indices, values = (t.cpu().numpy() for t in jaccard)
    for i, (first, last) in enumerate(itertools.pairwise(indptr.tolist())):
        at = first + int(indices[first:last].searchsorted(np.int32(i)))  # every item shares all its weight with itself
        values[at] = 0.0
    graph = scipy.sparse.csr_matrix((values, indices, indptr), shape=(n, n))
    if len(values) and values.max() >= 1.0:  # shared weight below what float32 can tell from none
        keep = values < 1.0
        starts = np.concatenate([[0], np.cumsum(keep)])[indptr]
        graph = scipy.sparse.csr_matrix((values[keep], indices[keep], starts), shape=graph.shape)
    return graph
