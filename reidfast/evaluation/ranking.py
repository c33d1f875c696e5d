# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""CMC, mean average precision and mean INP by counting: nothing is sorted, no Q x G array is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidfast.evaluation import _engine
from reidfast.evaluation._distances import Problem, csr_slice, tensor, together
from reidfast.evaluation._groups import Solo, ranks_of
from reidfast.evaluation._inputs import (
    FLOATS,
    Labels,
    check_choice,
    check_count,
    found,
    read_labels,
    to_tensor,
)
from reidfast.evaluation._metrics import AVERAGE_PRECISIONS, PROTOCOLS, Counted, Floats, Ranking, score
from reidfast.evaluation._pairs import JUNK, Ints, Pairs, find_pairs, offsets
from reidfast.evaluation._streaming import Stream, open_stream

PRECISIONS = ("float32", "tf32x3", "certified", "bf16")
_SHOT_BYTES = 64 << 20  # whole rows of distances kept at a time by the cuhk03 protocol


def rank(
    query: Any,
    gallery: Any,
    query_ids: Any,
    gallery_ids: Any,
    query_cameras: Any = None,
    gallery_cameras: Any = None,
    *,
    metric: str = "cosine",
    protocol: str = "market1501",
    average_precision: str | None = None,
    max_rank: int = 50,
    precision: str = "float32",
    validate: bool = False,
    group: Any = None,
) -> Ranking:
    """Evaluate features: CMC, average precision and INP of every query, without a Q x G array and without sorting.

        rank of the k-th true match = k + number of valid non-matches before it

    Non-matches are counted in tiles of distances as torch's BLAS makes them. Definitions: docs/evaluation.md.

    Args:
        query: Features (Q, D): torch tensor, numpy or cupy array, numpy.memmap, path of a .npy or .safetensors file, or
            a list of those (shards along Q). float16, bfloat16, float32 or float64.
        gallery: Features (G, D), likewise; on the query's device, or in files.
        query_ids: Identity of each query (Q,), integers; -1 is an error.
        gallery_ids: Identity of each gallery row (G,), integers. -1 is junk and counts for nobody; 0 is an identity
            like any other (Market-1501's distractors simply match no query).
        query_cameras: Camera of each query (Q,). With both camera arrays, gallery rows of the query's own identity and
            camera are left out; with neither that rule is off.
        gallery_cameras: Camera of each gallery row (G,).
        metric: "cosine" 1 - q.g/(|q||g|), a zero vector has distance 1; "euclidean" |q - g|; "sqeuclidean" |q - g|^2;
            "dot" -q.g.
        protocol: "market1501" (also Duke, MSMT17, CUHK03-NP); "cuhk03": CMC when one gallery image per identity is
            drawn at random, in expectation; "mars": the official rule, gallery with the query tracklets in it,
            trapezoidal AP; "mars_torchreid": gallery without them, AP by steps.
        average_precision: "step", "trapezoid" or "sklearn" (docs/evaluation.md); None takes the protocol's own.
        max_rank: Length of the CMC curve.
        precision: "float32"; on GPUs also "tf32x3" (float32 operands as two TensorFloat-32 halves each), "bf16"
            (features rounded to bfloat16 first), and "certified": a TensorFloat-32 pass with an error bound, after
            which the float32 routine decides the pairs that are too close to call, so that the ranks are those of
            "float32".
        validate: Look for NaN and inf in CUDA features beforehand, which synchronises. On the CPU that is always looked
            for.
        group: torch.distributed process group over which the gallery is sharded: every rank passes all queries and its
            part of the gallery, and gets the whole result, bit for bit that of one process holding the parts in rank
            order.

    Returns:
        Ranking, numpy on the host.

    Raises:
        ValueError: shapes do not fit, a feature is NaN or inf, or no query has a match.
        TypeError: features are not floating point, or ids not integer.
        NotImplementedError: ``precision`` is not served on this device, for float64, or with protocol "cuhk03".

    Notes:
        Ties: by gallery index; ``bounds`` says how much that can matter.
        Float32 distances (float64 where either side is). Half types are widened, never accumulated in.
        Memory beside the features: O(Q P) for P matches a query, and tiles of some 60 MB at D = 2048.
        Deterministic; the same bits for every number of threads and every split of the gallery.

    Example:
        >>> import numpy as np
        >>> features = np.eye(3, dtype=np.float32)
        >>> rank(features, features[[0, 2, 1]], [1, 2, 3], [1, 3, 2]).mean_ap
        1.0
    """
    op = "rank"
    kind = _check_options(op, protocol, average_precision, precision)
    max_rank = check_count(op, "max_rank", max_rank)
    ranks = ranks_of(op, group)
    with together(ranks):
        problem = Problem.read(op, query, gallery, metric, ranks, validate)
        stream = open_stream(problem, precision)
        if precision != "float32" and PROTOCOLS[protocol].single_shot:
            raise NotImplementedError(
                f"{op}: protocol {protocol!r} needs whole rows of distances, which precision {precision!r} does not "
                "make; use precision='float32'"
            )
        labels = read_labels(
            op, problem.query.n, problem.gallery.n, query_ids, gallery_ids, query_cameras, gallery_cameras
        )
        pairs = find_pairs(labels)
    _need_matches(op, labels, pairs, ranks)
    with together(ranks):
        distances = (stream or problem).pair_distances(pairs, labels.query)
    thresholds = _thresholds(pairs, distances, ranks)
    counts = np.zeros((3, len(thresholds.query)), np.int64)
    with together(ranks):
        if stream is not None:
            stream.count(pairs, labels, thresholds, counts)
        else:
            _count_features(problem, pairs, thresholds, ranks, counts)
    shot = None
    if PROTOCOLS[protocol].single_shot:
        shot = _single_shot_features(problem, labels, pairs, thresholds, ranks, max_rank)
    result = _finish(thresholds, ranks.add(counts), problem.query.n, kind, max_rank, shot)
    return result if precision != "certified" or stream is None else _with_share(result, stream, ranks)


def _with_share(result: Ranking, stream: Stream, ranks: Solo) -> Ranking:
    ambiguous, candidates = ranks.add(np.array([stream.ambiguous, stream.candidates], np.int64))
    return result._replace(ambiguous=float(ambiguous / max(1, candidates)))


def rank_distances(
    distances: Any,
    query_ids: Any,
    gallery_ids: Any,
    query_cameras: Any = None,
    gallery_cameras: Any = None,
    *,
    protocol: str = "market1501",
    average_precision: str | None = None,
    max_rank: int = 50,
    validate: bool = False,
    group: Any = None,
) -> Ranking:
    """Evaluate a distance matrix: as `rank`, from distances made elsewhere (re-ranked ones, for instance).

    Args:
        distances: (Q, G), smaller is closer: torch tensor, numpy or cupy array, numpy.memmap, path of a .npy or
            .safetensors file; floating point or integer, any strides, inf allowed.
        query_ids: See `rank`.
        gallery_ids: See `rank`.
        query_cameras: See `rank`.
        gallery_cameras: See `rank`.
        protocol: See `rank`.
        average_precision: See `rank`.
        max_rank: Length of the CMC curve.
        validate: Look for NaN in CUDA distances, which synchronises. On the CPU that is always looked for.
        group: See `rank`; every rank passes the columns of its part of the gallery.

    Returns:
        Ranking, numpy on the host.

    Raises:
        ValueError: shapes do not fit, a distance is NaN, or no query has a match.
        TypeError: distances are not numbers, or ids not integer.

    Notes:
        Equal to a stable sort of every row, ties included. Reads the matrix once, in place; integers are converted to
        float64 first. Memory: O(Q P).

    Example:
        >>> import numpy as np
        >>> rank_distances(np.array([[0.1, 0.2, 0.3]]), [7], [5, 7, 7]).ap
        array([0.58333333])
    """
    op = "rank_distances"
    kind = _check_options(op, protocol, average_precision, "float32")
    max_rank = check_count(op, "max_rank", max_rank)
    ranks = ranks_of(op, group)
    with together(ranks):
        d = _read_distances(op, distances, ranks)
        labels = read_labels(op, d.shape[0], d.shape[1], query_ids, gallery_ids, query_cameras, gallery_cameras)
        if d.device.type == "cuda" and validate:
            bad = torch.isnan(d).any(1)
            if bool(bad.any()):
                raise _nan_distance(op, int(torch.nonzero(bad)[0]))
        pairs = find_pairs(labels)
    _need_matches(op, labels, pairs, ranks)
    wide = bool(ranks.add(np.array([d.dtype == torch.float64], np.int64))[0])
    if wide and d.dtype != torch.float64:
        d = d.double()
    thresholds, counts = count_matrix(op, d, labels, pairs, ranks)
    shot = None
    if PROTOCOLS[protocol].single_shot:
        shot = _single_shot_matrix(op, d, labels, pairs, thresholds, ranks, max_rank)
    return _finish(thresholds, ranks.add(counts), d.shape[0], kind, max_rank, shot)


def count_matrix(
    op: str, d: Tensor, labels: Labels, pairs: Pairs, ranks: Solo
) -> tuple[_Thresholds, NDArray[np.int64]]:
    """Thresholds of a matrix, and below, equal, before of each [3, n] in this part of the gallery."""
    rows = tensor(pairs.row(pairs.column))
    drop = tensor(np.empty(0, np.int64) if pairs.kept is None else np.flatnonzero(labels.gallery == JUNK))
    if ranks.size == 1 and d.device.type == "cpu":
        ptr, order, values, counted, bad_row = _engine.RANK_MATRIX.on["cpu"](
            d, tensor(pairs.ptr), rows, tensor(pairs.valid), drop
        )
        if bad_row >= 0:
            raise _nan_distance(op, bad_row)
        return _Thresholds.of_pairs(pairs, ptr.numpy(), order.numpy(), values.numpy()), counted.numpy()
    thresholds = _thresholds(pairs, _gather(d, pairs), ranks)
    # Within this part of the gallery a tie is broken by row; a match of another rank stands before or after all of it.
    column = thresholds.local_columns(ranks, pairs, d.shape[1])
    counts = torch.zeros(3, len(thresholds.query), dtype=torch.int64)
    with together(ranks):
        bad_row = _engine.COUNT_DISTANCES.on[d.device.type](
            d,
            tensor(thresholds.ptr),
            tensor(thresholds.distance),
            tensor(column),
            tensor(pairs.ptr),
            rows,
            drop,
            counts,
        )
        if bad_row >= 0:
            raise _nan_distance(op, bad_row)
    return thresholds, counts.numpy()


def _check_options(op: str, protocol: Any, average_precision: Any, precision: Any) -> str:
    check_choice(op, "protocol", protocol, tuple(PROTOCOLS))
    check_choice(op, "precision", precision, PRECISIONS)
    if average_precision is None:
        return PROTOCOLS[protocol].average_precision
    check_choice(op, "average_precision", average_precision, AVERAGE_PRECISIONS)
    return str(average_precision)


def _read_distances(op: str, x: Any, ranks: Solo) -> Tensor:
    d = to_tensor(op, "distances", x)
    if d.ndim != 2:
        raise ValueError(f"{op}: expected distances of shape (Q, G), got {tuple(d.shape)}")
    if d.dtype not in FLOATS:
        if d.dtype == torch.bool or d.is_complex():
            raise TypeError(f"{op}: expected distances of a floating-point or integer dtype, got {found(d)}")
        d = d.double()
    if d.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{op}: expected distances on the CPU or a CUDA device, got {d.device}")
    if d.shape[1] == 0 and ranks.size == 1:
        raise ValueError(f"{op}: expected a gallery with at least one row, got distances of shape {tuple(d.shape)}")
    return d


def _nan_distance(op: str, row: int) -> ValueError:
    return ValueError(f"{op}: expected distances without NaN, got NaN, first in query row {row}")


def _gather(d: Tensor, pairs: Pairs) -> NDArray[Any]:
    query, row = (tensor(x).to(d.device) for x in (pairs.query, pairs.row(pairs.column)))
    values = d[query, row]
    return (values if values.dtype == torch.float64 else values.float()).cpu().numpy()


@dataclass
class _Thresholds:
    """Valid matches of all ranks, sorted by (query, distance, global column); ``first`` = this rank's first column."""

    query: Ints
    distance: NDArray[Any]
    column: Ints
    ptr: Ints
    first: int = 0

    @classmethod
    def of_pairs(cls, pairs: Pairs, ptr: Ints, order: Ints, distance: NDArray[Any]) -> _Thresholds:
        """Of the valid pairs of one process, sorted."""
        return cls(pairs.query[order], distance, pairs.column[order], ptr)

    def local_columns(self, ranks: Solo, pairs: Pairs, rows: int) -> Ints:
        """Matches' rows in this rank's matrix; -1 before it, ``rows`` behind."""
        local = self.column - self.first
        inside = (local >= 0) & (local < pairs.columns)
        out = np.where(local < 0, -1, rows).astype(np.int64)
        out[inside] = pairs.row(local[inside])
        return out


def _thresholds(pairs: Pairs, distances: NDArray[Any], ranks: Solo) -> _Thresholds:
    if ranks.size == 1:
        found = _engine.SORT_PAIRS.on["cpu"](tensor(pairs.ptr), tensor(pairs.valid), tensor(distances))
        ptr, order = (x.numpy() for x in found)
        return _Thresholds.of_pairs(pairs, ptr, order, distances[order])
    first, _ = ranks.starts(pairs.columns)
    query = ranks.concatenate(pairs.query[pairs.valid])
    column = ranks.concatenate(pairs.column[pairs.valid] + first)
    distance = ranks.concatenate(distances[pairs.valid])
    order = np.lexsort((column, distance, query))
    ptr = offsets(np.bincount(query, minlength=len(pairs.ptr) - 1))
    return _Thresholds(query[order], distance[order], column[order], ptr, first)


def _need_matches(op: str, labels: Labels, pairs: Pairs, ranks: Solo) -> None:
    if len(labels.query) == 0:
        raise ValueError(f"{op}: expected at least one query, got none")
    shared, valid = ranks.add(np.array([len(pairs.column), int(pairs.valid.sum())], np.int64))
    if valid:
        return
    n = len(labels.query)
    if shared:
        raise ValueError(
            f"{op}: none of the {n} queries has a match: {shared} gallery rows share an identity with a query, all of "
            "them seen by the query's own camera; leave out query_cameras and gallery_cameras to turn that rule off"
        )
    some = ", ".join(map(str, np.unique(labels.query)[:3])), ", ".join(map(str, np.unique(labels.gallery)[:3]))
    raise ValueError(
        f"{op}: none of the {n} queries has a match: query_ids (e.g. {some[0]}) and gallery_ids (e.g. {some[1]}) have "
        "no identity in common; pass ids of one numbering that overlap"
    )


def _count_features(problem: Problem, pairs: Pairs, thresholds: _Thresholds, ranks: Solo, counts: Ints) -> None:
    for q0, query in problem.query_chunks():
        ptr, mine = csr_slice(thresholds.ptr, q0, q0 + len(query))
        same_ptr, same = csr_slice(pairs.ptr, q0, q0 + len(query))
        values, columns = tensor(thresholds.distance[mine]), tensor(thresholds.column[mine])
        same_columns = tensor(pairs.column[same] + thresholds.first)
        part = torch.zeros(3, len(values), dtype=torch.int64)
        for g0, first, gallery, rows in problem.columns(pairs):
            status = _engine.COUNT_FEATURES.on[problem.device](
                query, gallery, rows, problem.metric, thresholds.first + first, ptr, values, columns, same_ptr,
                same_columns, _engine.BLOCK_QUERIES, _engine.BLOCK_GALLERY, part,
            )  # fmt: skip
            problem.check(status, q0, g0)
        counts[:, mine] += part.numpy()


class _Identities:
    """Gallery identities numbered 0 .. n-1 over all ranks, for drawing one image of each."""

    def __init__(self, labels: Labels, pairs: Pairs, ranks: Solo) -> None:
        own = labels.gallery if pairs.kept is None else labels.gallery[pairs.kept]
        ids, index, counts = np.unique(own, return_inverse=True, return_counts=True)
        self.ids, place = np.unique(ranks.concatenate(ids), return_inverse=True)
        self.sizes = np.bincount(place, ranks.concatenate(counts), len(self.ids)).astype(np.int32)
        self.index = np.searchsorted(self.ids, ids)[index].astype(np.int32)  # of this rank's columns
        place = np.minimum(np.searchsorted(self.ids, labels.query), max(0, len(self.ids) - 1))
        self.own = np.where(self.ids[place] == labels.query, place, -1).astype(np.int32)


def _single_shot(
    rows: Callable[[int, int], Tensor], span: tuple[int, int], step: int, who: _Identities, thresholds: _Thresholds,
    ranks: Solo, max_rank: int,
) -> Floats:  # fmt: skip
    """Curves of queries [begin, end) from ``rows(q0, q1)``, their distances to this rank's columns.

    One process does all for ``step`` queries at a time. Several count what lies before each match in their own part,
    tell each other the counts that are not zero, and share out the rest by queries.
    """
    begin, end = span
    out = np.zeros((end - begin, max_rank))
    sizes = tensor(who.sizes)
    for number, q0 in enumerate(range(begin, end, step)):
        q1 = min(end, q0 + step)
        ptr, mine = csr_slice(thresholds.ptr, q0, q1)
        values, own = tensor(thresholds.distance[mine]), tensor(who.own[q0:q1])
        columns = tensor(thresholds.column[mine] - thresholds.first)
        with together(ranks):
            d = rows(q0, q1).cpu().contiguous()
        shape = len(values), len(sizes)
        count = _engine.SINGLE_SHOT_CLOSER.on["cpu"]
        counted = count(d, ptr, values, columns, tensor(who.index), len(sizes), own)
        if ranks.size == 1:
            curve = _engine.SINGLE_SHOT_CHANCE.on["cpu"](counted, ptr, sizes, max_rank)
            out[q0 - begin : q1 - begin] = curve.numpy()
            continue
        closer = counted.numpy().reshape(-1)
        some = np.flatnonzero(closer)
        where, counts = ranks.concatenate(some), ranks.concatenate(closer[some])
        if number % ranks.size == ranks.rank:
            whole = np.bincount(where, counts, shape[0] * shape[1]).astype(np.int32).reshape(shape)
            curve = _engine.SINGLE_SHOT_CHANCE.on["cpu"](tensor(whole), ptr, sizes, max_rank)
            out[q0 - begin : q1 - begin] = curve.numpy()
    return out


def _single_shot_features(
    problem: Problem, labels: Labels, pairs: Pairs, thresholds: _Thresholds, ranks: Solo, max_rank: int
) -> Floats:
    who = _Identities(labels, pairs, ranks)
    out = np.zeros((problem.query.n, max_rank))
    step = _shot_step(ranks, pairs, thresholds, who)
    for start, query in problem.query_chunks():

        def rows(q0: int, q1: int, start: int = start, query: Tensor = query) -> Tensor:
            # The height of the tiles depends on the number of queries: keep to numbers that share it.
            some = query[q0 - start : q1 - start]
            pad = 33 - len(some) if len(query) > 32 and len(some) <= 32 else 0
            if pad > 0:
                some = torch.cat([some, some[:1].expand(pad, -1)])
            parts = []
            for g0, _, gallery, kept in problem.columns(pairs):
                d, status = _engine.DENSE_DISTANCES.on[problem.device](some, gallery, kept, problem.metric)
                problem.check(status, q0, g0)
                parts.append(d[: q1 - q0])
            return torch.cat(parts, 1) if parts else torch.empty(q1 - q0, 0, dtype=problem.dtype)

        end = start + len(query)
        out[start:end] = _single_shot(rows, (start, end), step, who, thresholds, ranks, max_rank)
    return out if ranks.size == 1 else ranks.add(out)


def _single_shot_matrix(
    op: str, d: Tensor, labels: Labels, pairs: Pairs, thresholds: _Thresholds, ranks: Solo, max_rank: int
) -> Floats:
    who = _Identities(labels, pairs, ranks)
    dtype = torch.float64 if thresholds.distance.dtype == np.float64 else torch.float32

    def rows(q0: int, q1: int) -> Tensor:
        some = d[q0:q1].to(dtype)
        return some if pairs.kept is None else some[:, tensor(pairs.kept).to(d.device)]

    step = _shot_step(ranks, pairs, thresholds, who)
    out = _single_shot(rows, (0, len(d)), step, who, thresholds, ranks, max_rank)
    return out if ranks.size == 1 else ranks.add(out)


def _shot_step(ranks: Solo, pairs: Pairs, thresholds: _Thresholds, who: _Identities) -> int:
    """Queries at a time: their distances and their counts per identity within _SHOT_BYTES. Same on all processes."""
    columns = ranks.starts(pairs.columns)[1]
    most = int(np.diff(thresholds.ptr).max(initial=0))
    wide = 8 * columns + (4 if ranks.size == 1 else 12) * len(who.ids) * most
    step = _SHOT_BYTES // max(1, wide)
    return max(1, step // 128 * 128 or step)


def _finish(
    thresholds: _Thresholds, counts: NDArray[np.int64], queries: int, kind: str, max_rank: int, shot: Floats | None
) -> Ranking:
    below, equal, before = counts
    counted = Counted(queries, thresholds.query, thresholds.distance, below, equal, before)
    return score(counted, kind, max_rank, shot)
