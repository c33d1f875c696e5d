# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Person search: a query is a person in one image, the answers are boxes in whole images.

Two protocols. `cuhk_sysu` asks, in every gallery image that shows the person, for one box that lies well enough, and
multiplies the average precision by the share of those images in which there was one. `prw` names every detected box by
the true box it covers best, and then ranks boxes as Market-1501 ranks images: another camera's boxes of the person are
right, the own camera's and badly placed ones do not count, boxes that were never found count as found last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidfast.evaluation._inputs import check_choice, check_count

__all__ = [
    "Detections",
    "PersonSearch",
    "SearchQueries",
    "SearchTruth",
    "box_iou",
    "person_search",
    "person_search_sweep",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
OP = "person_search"
PROTOCOLS = {"cuhk_sysu": "step", "prw": "trapezoid"}
TILE = 1 << 22  # similarities held at a time


class SearchQueries(NamedTuple):
    """The persons searched for.

    Attributes:
        ids: (Q,) integers, the persons.
        images: (Q,) integers, the image each was cut from, numbered as the gallery's; -1 where it is not among them.
        features: (Q, D), compared with the detections' by cosine; None where the detections bring similarities.
    """

    ids: Any
    images: Any
    features: Any = None


class Detections(NamedTuple):
    """The boxes found in the gallery, a row each; either for everybody, or each for one query alone.

    Attributes:
        images: (M,) integers, the image of each box.
        boxes: (M, 4) as x1, y1, x2, y2.
        scores: (M,) how sure the detector is, or None: every box counts.
        features: (M, D), beside the queries' features.
        queries: (M,) integers: the query a box was made for; then `similarities` replace the features.
        similarities: (M,) higher is more alike.
    """

    images: Any
    boxes: Any
    scores: Any = None
    features: Any = None
    queries: Any = None
    similarities: Any = None


class SearchTruth(NamedTuple):
    """Where the persons really are.

    Attributes:
        images: (N,) integers in [0, number of images).
        boxes: (N, 4) as x1, y1, x2, y2.
        ids: (N,) integers; below 0: a person, but nobody says who.
    """

    images: Any
    boxes: Any
    ids: Any


class PersonSearch(NamedTuple):
    """Scores of a search, numpy on the host.

    Attributes:
        mean_ap: Mean of `ap` over the valid queries.
        cmc: float64 (max_rank,), share of the valid queries with a right box among the first k; `cmc[0]` is top-1.
        recall: Found boxes over boxes to be found, summed over the valid queries.
        ap: float64 (Q,), NaN where the person is in none of the query's gallery images.
        first_match: int64 (Q,), rank of the first right box, from 1; -1 where there is none.
        positives: int64 (Q,), boxes to be found.
        found: int64 (Q,), boxes found.
        valid: bool (Q,), whether there was anything to find.
        skipped: int64, the queries that had nothing to find.
    """

    mean_ap: float
    cmc: Floats
    recall: float
    ap: Floats
    first_match: Ints
    positives: Ints
    found: Ints
    valid: NDArray[np.bool_]
    skipped: Ints


def box_iou(a: Any, b: Any, *, inclusive: bool = False) -> Floats:
    """Intersection over union of boxes (..., 4) with boxes (..., 4), broadcast.

    Args:
        a: x1, y1, x2, y2.
        b: x1, y1, x2, y2.
        inclusive: Corners are pixels that belong to the box, so a width is x2 - x1 + 1 (PASCAL's and PRW's way).

    Example:
        >>> float(box_iou([0, 0, 2, 2], [1, 0, 3, 2]).round(3))
        0.333
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    more = 1.0 if inclusive else 0.0
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]) + more
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]) + more
    both = np.maximum(width, 0) * np.maximum(height, 0)
    area_a = (a[..., 2] - a[..., 0] + more) * (a[..., 3] - a[..., 1] + more)
    area_b = (b[..., 2] - b[..., 0] + more) * (b[..., 3] - b[..., 1] + more)
    union = area_a + area_b - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def person_search(
    queries: SearchQueries,
    detections: Detections,
    truth: SearchTruth,
    *,
    protocol: str = "cuhk_sysu",
    galleries: Sequence[Any] | None = None,
    image_cameras: Any = None,
    other_cameras: bool = False,
    score_threshold: float = 0.5,
    iou: float = 0.5,
    average_precision: str | None = None,
    max_rank: int = 50,
    depth: int | None = None,
) -> PersonSearch:
    """Score a person search: mAP and top-k.

        cuhk_sysu: in an image where the person has the box b, w x h, of the boxes taken in order of similarity the
                   first with IoU(box, b) >= min(iou, w h / ((w + 10)(h + 10))) is right, all others are wrong;
                   AP = average precision of the found * found / images that show the person
        prw:       a box is the person whose true box it overlaps most, with IoU >= iou, only the best box of each;
                   right = the person in another camera; left out = the person in the own camera, boxes with
                   0.3 <= IoU < iou, second-best boxes, people whom nobody named; AP over right boxes, found or not

    Xiao et al., "Joint Detection and Identification Feature Learning for Person Search", CVPR 2017, and Zheng et al.,
    "Person Re-identification in the Wild", CVPR 2017; details as in their released code. Scores on PRW that call
    themselves comparable with CUHK-SYSU's use `cuhk_sysu` with no galleries: every image but the query's own.

    Args:
        queries: Who is searched for.
        detections: What was found. Boxes for everybody bring features (cosine with the queries'); boxes made for one
            query bring `queries` and `similarities`.
        truth: Who is where.
        protocol: "cuhk_sysu" or "prw".
        galleries: For each query, the numbers of the images searched (CUHK-SYSU's TestG50 ... TestG4000); None: all.
            In `cuhk_sysu` the query's own image never counts.
        image_cameras: (images,) camera of each image: needed by `prw` and by `other_cameras`.
        other_cameras: In `cuhk_sysu`, leave the images of the query's own camera out.
        score_threshold: Detections with lower scores are not retrieved (where there are scores). In `prw` they still
            keep weaker boxes of the same person from counting, as published.
        iou: The overlap asked for.
        average_precision: "step" or "trapezoid"; None: "step" in `cuhk_sysu` (today's scikit-learn; before 0.19 it
            was the trapezoid), "trapezoid" in `prw`.
        max_rank: Length of `cmc`.
        depth: Right boxes below this rank count as not found; None: no limit. PRW's released routine has 1,000.

    Returns:
        PersonSearch.

    Raises:
        ValueError: Shapes, numbers out of range, or nothing to find for any query.
        TypeError: Integers expected.

    Notes:
        Ties: the lower row of `detections` first. Similarities are float64; never an array of queries x detections.
        PRW's released code passes over images without any detection; here the persons in them count as not found.

    Example:
        >>> queries = SearchQueries(ids=[7], images=[-1], features=[[1.0, 0.0]])
        >>> found = Detections([0, 1], [[0, 0, 10, 20], [5, 5, 15, 25]], features=[[0.9, 0.1], [0.1, 0.9]])
        >>> truth = SearchTruth([0, 1], [[0, 0, 10, 21], [50, 50, 60, 70]], [7, 7])
        >>> person_search(queries, found, truth).mean_ap  # one of two images, and that one first
        0.5
    """
    check_choice(OP, "protocol", protocol, list(PROTOCOLS))
    kind = PROTOCOLS[protocol] if average_precision is None else average_precision
    check_choice(OP, "average_precision", kind, ("step", "trapezoid"))
    max_rank = check_count(OP, "max_rank", max_rank)
    if depth is not None:
        depth = check_count(OP, "depth", depth)
    if not 0 < iou <= 1:
        raise ValueError(f"{OP}: expected iou in (0, 1], got {iou}")
    table = _read(queries, detections, truth, galleries, image_cameras)
    if table.cameras is None and (protocol == "prw" or other_cameras):
        reason = "protocol 'prw'" if protocol == "prw" else "other_cameras"
        raise ValueError(f"{OP}: expected image_cameras, the camera of each image, for {reason}; got none")
    n = len(table.ids)
    ap, positives, found = np.full(n, np.nan), np.zeros(n, np.int64), np.zeros(n, np.int64)
    first_match = np.full(n, -1, np.int64)
    labels = _PrwLabels(table, iou) if protocol == "prw" else None
    for q, rows, similarity in table.candidates():
        searched = np.ones(table.images, bool)
        if table.galleries is not None:
            searched[:] = False
            searched[table.galleries[q]] = True
        home = table.home[q]
        if labels is None:
            if home >= 0:
                searched[home] = False
                if other_cameras and table.cameras is not None:
                    searched &= table.cameras != table.cameras[home]
            allowed = searched[table.det_image[rows]] & table.above(rows, score_threshold)
            hits, count = _cuhk_hits(table, q, rows, similarity, searched, allowed, iou)
        else:
            hits, count, allowed = labels.judge(q, rows, searched)
            allowed &= table.above(rows, score_threshold)
            hits = hits[allowed[hits]]
        positives[q] = count
        if not count:
            continue
        ranks = _ranks(similarity, allowed, hits)
        if depth is not None:
            ranks = ranks[ranks <= depth]
        found[q] = len(ranks)
        if len(ranks):
            first_match[q] = ranks[0]
        ap[q] = _average_precision(ranks, kind) / count
    valid = positives > 0
    if not valid.any():
        raise ValueError(f"{OP}: expected a query whose person is in its gallery images, got none among {n}")
    hits_at = np.bincount(first_match[valid & (first_match > 0) & (first_match <= max_rank)], minlength=max_rank + 1)
    return PersonSearch(
        mean_ap=float(ap[valid].mean()),
        cmc=np.cumsum(hits_at[1 : max_rank + 1]) / valid.sum(),
        recall=float(found[valid].sum() / positives[valid].sum()),
        ap=ap,
        first_match=first_match,
        positives=positives,
        found=found,
        valid=valid,
        skipped=np.flatnonzero(~valid).astype(np.int64),
    )


def person_search_sweep(
    queries: SearchQueries, detections: Detections, truth: SearchTruth, *, pieces: int = 30, **options: Any
) -> list[tuple[float, PersonSearch]]:
    """Scores at `pieces` detection thresholds, as PRW reports them: against the number of boxes an image.

    Piece i leaves out the i / pieces of the detections with the lowest scores.

    Args:
        queries: As in `person_search`.
        detections: As in `person_search`, with scores.
        truth: As in `person_search`.
        pieces: Number of thresholds.
        options: Of `person_search`, but for score_threshold.

    Returns:
        (retrieved boxes an image that has any, scores) for i = 0 ... pieces - 1.
    """
    pieces = check_count("person_search_sweep", "pieces", pieces)
    if detections.scores is None or not len(detections.scores):
        raise ValueError("person_search_sweep: expected detections with scores, got none")
    scores = _numbers("scores", detections.scores, (len(detections.scores),))
    ordered = np.sort(scores)
    images = len(np.unique(_numbers("images", detections.images, (len(scores),), integers=True)))
    out = []
    for i in range(pieces):
        threshold = float(ordered[i * len(ordered) // pieces])
        result = person_search(queries, detections, truth, score_threshold=threshold, **options)
        out.append((float((scores >= threshold).sum() / images), result))
    return out


@dataclass
class _Table:
    """Everything, checked, on the host."""

    ids: Ints
    home: Ints
    det_image: Ints
    det_box: Floats
    det_score: Floats | None
    true_image: Ints
    true_box: Floats
    true_id: Ints
    galleries: list[Ints] | None
    cameras: Ints | None
    images: int
    query_features: Tensor | None
    det_features: Tensor | None
    det_query: Ints | None
    det_similarity: Floats | None

    def above(self, rows: Ints, threshold: float) -> NDArray[np.bool_]:
        if self.det_score is None:
            return np.ones(len(rows), bool)
        return self.det_score[rows] >= threshold

    def candidates(self) -> Iterator[tuple[int, Ints, Floats]]:
        """(query, rows of the detections that are there for it, their similarities)."""
        n, m = len(self.ids), len(self.det_image)
        if self.det_query is not None and self.det_similarity is not None:
            order = np.argsort(self.det_query, kind="stable")
            ends = np.searchsorted(self.det_query[order], np.arange(n + 1))
            for q in range(n):
                rows = order[ends[q] : ends[q + 1]]
                yield q, rows, self.det_similarity[rows]
            return
        assert self.query_features is not None and self.det_features is not None
        everything = np.arange(m)
        if self.galleries is None:
            step = max(1, TILE // max(1, m))
            for start in range(0, n, step):
                similarity = (self.query_features[start : start + step] @ self.det_features.T).numpy()
                for i, row in enumerate(similarity):
                    yield start + i, everything, row
            return
        order = np.argsort(self.det_image, kind="stable")
        ends = np.searchsorted(self.det_image[order], np.arange(self.images + 1))
        for q, gallery in enumerate(self.galleries):
            parts = [order[ends[i] : ends[i + 1]] for i in gallery]
            rows = np.sort(np.concatenate(parts)) if parts else everything[:0]
            yield q, rows, (self.det_features[torch.from_numpy(rows)] @ self.query_features[q]).numpy()


def _cuhk_hits(
    table: _Table,
    q: int,
    rows: Ints,
    similarity: Floats,
    searched: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
    iou: float,
) -> tuple[Ints, int]:
    """Positions in `rows` of the right boxes, and in how many searched images the person is."""
    true = np.flatnonzero((table.true_id == table.ids[q]) & searched[table.true_image])
    image_of, first = np.unique(table.true_image[true], return_index=True)
    true = true[first]  # one box an image: the first listed
    box_of = np.full(table.images, -1, np.int64)
    box_of[image_of] = true
    near = np.flatnonzero(allowed & (box_of[table.det_image[rows]] >= 0))
    target = table.true_box[box_of[table.det_image[rows[near]]]]
    width, height = target[:, 2] - target[:, 0], target[:, 3] - target[:, 1]
    needed = np.minimum(iou, width * height / ((width + 10) * (height + 10)))
    near = near[box_iou(table.det_box[rows[near]], target) >= needed]
    image = table.det_image[rows[near]]
    order = np.lexsort((rows[near], -similarity[near], image))
    near, image = near[order], image[order]
    best = near[np.r_[True, image[1:] != image[:-1]]] if len(near) else near
    return best, len(true)


class _PrwLabels:
    """Whom each detection shows, by PRW's rule."""

    JUNK, NOBODY = -1, -2

    def __init__(self, table: _Table, iou: float) -> None:
        self.table, self.iou = table, iou
        order = np.argsort(table.true_image, kind="stable")
        self.order, self.ends = order, np.searchsorted(table.true_image[order], np.arange(table.images + 1))
        self.shared = None
        if table.det_query is None:
            self.shared = self._label(np.arange(len(table.det_image)))

    def _label(self, rows: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """(person of each row, JUNK or NOBODY; which true boxes were found) for detections that compete."""
        t = self.table
        person = np.full(len(rows), self.NOBODY, np.int64)
        seen = np.zeros(len(t.true_id), bool)
        by_image = np.argsort(t.det_image[rows], kind="stable")
        ends = np.searchsorted(t.det_image[rows][by_image], np.arange(t.images + 1))
        for image in np.flatnonzero(np.diff(ends)):
            here, true = by_image[ends[image] : ends[image + 1]], self.order[self.ends[image] : self.ends[image + 1]]
            if not len(true):
                continue
            overlap = box_iou(t.det_box[rows[here], None], t.true_box[true], inclusive=True)
            best = overlap.argmax(1)
            value = overlap[np.arange(len(here)), best]
            good = value >= self.iou
            seen[true[best[good]]] = True
            ids = np.where(good, np.maximum(t.true_id[true[best]], self.JUNK), self.NOBODY)
            ids[~good & (value >= 0.3)] = self.JUNK
            for person_id in np.unique(ids[ids >= 0]):
                same = np.flatnonzero(ids == person_id)
                ids[np.delete(same, value[same].argmax())] = self.JUNK
            person[here] = ids
        return person, seen

    def judge(self, q: int, rows: Ints, searched: NDArray[np.bool_]) -> tuple[Ints, int, NDArray[np.bool_]]:
        """Positions of right boxes, how many there are to find, and which rows count at all."""
        t = self.table
        assert t.cameras is not None
        if self.shared is None:
            person, seen = self._label(rows)
        else:
            person, seen = self.shared[0][rows], self.shared[1]
        home = t.home[q]
        elsewhere = t.cameras != t.cameras[home] if home >= 0 else np.ones(t.images, bool)
        mine, far = person == t.ids[q], elsewhere[t.det_image[rows]]
        inside = searched[t.det_image[rows]]
        allowed = inside & (person != self.JUNK) & ~(mine & ~far)
        hits = np.flatnonzero(mine & far & inside)
        missed = (t.true_id == t.ids[q]) & elsewhere[t.true_image] & searched[t.true_image] & ~seen
        return hits, len(hits) + int(missed.sum()), allowed


def _ranks(similarity: Floats, allowed: NDArray[np.bool_], hits: Ints) -> Ints:
    """1-based ranks of the hits among the allowed rows, ascending; ties by row."""
    position = np.flatnonzero(allowed)
    values = similarity[position]
    order = np.lexsort((position, -values)) if len(hits) > 64 else None
    if order is not None:
        place = np.empty(len(similarity), np.int64)
        place[position[order]] = np.arange(1, len(position) + 1)
        return np.sort(place[hits])
    ranks = [int((values > similarity[h]).sum() + ((values == similarity[h]) & (position < h)).sum()) + 1 for h in hits]
    return np.sort(np.array(ranks, np.int64))


def _average_precision(ranks: Ints, kind: str) -> float:
    """Sum over the hits; the caller divides by all there was to find."""
    place = np.arange(1, len(ranks) + 1)
    precision = place / ranks
    if kind == "trapezoid":
        before = np.divide(place - 1, ranks - 1, out=np.ones(len(ranks)), where=ranks > 1)
        precision = (precision + before) / 2
    return float(precision.sum())


def _host(x: Any) -> NDArray[Any]:
    if isinstance(x, Tensor):
        x = x.detach()
        return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()
    return np.asarray(x.get() if hasattr(x, "__cuda_array_interface__") and hasattr(x, "get") else x)


def _numbers(name: str, x: Any, shape: tuple[int, ...], *, integers: bool = False) -> NDArray[Any]:
    try:
        values = _host(x)
    except ValueError:
        raise ValueError(f"{OP}: expected {name} to be a regular array, got a ragged one") from None
    if values.size == 0 and 0 in shape:
        return np.zeros(shape, np.int64 if integers else np.float64)
    if values.shape != shape:
        raise ValueError(f"{OP}: expected {name} of shape {shape}, got {values.shape}")
    if values.dtype.kind not in ("iu" if integers else "iuf"):
        raise TypeError(f"{OP}: expected {name} of {'integers' if integers else 'numbers'}, got {values.dtype}")
    if not np.isfinite(values).all():
        raise ValueError(f"{OP}: expected finite {name}, got NaN or infinity in row {_first_bad(values)}")
    return values.astype(np.int64 if integers else np.float64)


def _first_bad(values: NDArray[Any]) -> int:
    return int(np.argwhere(~np.isfinite(values))[0][0])


def _boxes(name: str, x: Any, n: int) -> Floats:
    boxes = _numbers(name, x, (n, 4))
    wrong = np.flatnonzero((boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1]))
    if len(wrong):
        row = boxes[wrong[0]].tolist()
        raise ValueError(
            f"{OP}: expected {name} as x1, y1, x2, y2 with x2 >= x1, y2 >= y1, got {row} in row {wrong[0]}"
        )
    return boxes


def _length(name: str, x: Any) -> int:
    try:
        return len(x)
    except TypeError:
        raise ValueError(f"{OP}: expected {name} to be an array, got {x!r}") from None


def _unit(name: str, x: Any, n: int) -> Tensor:
    values = _host(x)
    if values.ndim != 2 or len(values) != n:
        raise ValueError(f"{OP}: expected {name} of shape ({n}, D), got {values.shape}")
    features = torch.from_numpy(_numbers(name, values, values.shape))
    return features / features.norm(dim=1, keepdim=True).clamp(min=1e-300)


def _in_range(name: str, values: Ints, low: int, high: int, of: str) -> None:
    wrong = np.flatnonzero((values < low) | (values >= high))
    if len(wrong):
        raise ValueError(f"{OP}: expected {name} in [{low}, {high}), {of}; got {values[wrong[0]]} in row {wrong[0]}")


def _read(
    queries: SearchQueries, detections: Detections, truth: SearchTruth, galleries: Any, image_cameras: Any
) -> _Table:
    n, m, t = (
        _length("queries.ids", queries.ids),
        _length("detections.images", detections.images),
        _length("truth.ids", truth.ids),
    )
    if not n:
        raise ValueError(f"{OP}: expected at least one query, got none")
    ids = _numbers("queries.ids", queries.ids, (n,), integers=True)
    if (ids < 0).any():
        raise ValueError(f"{OP}: expected queries of known persons, got id {ids.min()} in row {int(ids.argmin())}")
    home = _numbers("queries.images", queries.images, (n,), integers=True)
    det_image = _numbers("detections.images", detections.images, (m,), integers=True)
    true_image = _numbers("truth.images", truth.images, (t,), integers=True)
    cameras, listed = None, None
    highest = max((int(x.max()) + 1 for x in (home, det_image, true_image) if len(x)), default=0)
    if galleries is not None:
        if _length("galleries", galleries) != n:
            raise ValueError(f"{OP}: expected one gallery for each of {n} queries, got {len(galleries)}")
        listed = [_numbers("galleries", g, (_length("galleries", g),), integers=True) for g in galleries]
        highest = max([highest, *(int(g.max()) + 1 for g in listed if len(g))])
    images, of = highest, "the images"
    if image_cameras is not None:
        images, of = _length("image_cameras", image_cameras), "as many as image_cameras has"
        cameras = _numbers("image_cameras", image_cameras, (images,), integers=True)
    _in_range("queries.images", home, -1, images, of)
    _in_range("detections.images", det_image, 0, images, of)
    _in_range("truth.images", true_image, 0, images, of)
    if listed is not None:
        for g in listed:
            _in_range("galleries", g, 0, images, of)
        listed = [np.unique(g) for g in listed]
    score = None if detections.scores is None else _numbers("detections.scores", detections.scores, (m,))
    det_query = det_similarity = query_features = det_features = None
    if detections.queries is not None or detections.similarities is not None:
        if detections.queries is None or detections.similarities is None or detections.features is not None:
            raise ValueError(
                f"{OP}: expected detections made for one query each to have queries and similarities and no features"
            )
        det_query = _numbers("detections.queries", detections.queries, (m,), integers=True)
        _in_range("detections.queries", det_query, 0, n, "the queries")
        det_similarity = _numbers("detections.similarities", detections.similarities, (m,))
    else:
        if queries.features is None or (detections.features is None and m):
            raise ValueError(f"{OP}: expected features of queries and detections, or detections with similarities")
        query_features = _unit("queries.features", queries.features, n)
        width = query_features.shape[1]
        det_features = _unit("detections.features", detections.features, m) if m else query_features.new_zeros(0, width)
        if det_features.shape[1] != width:
            raise ValueError(f"{OP}: expected features of one size, got {width} and {det_features.shape[1]}")
    return _Table(
        ids=ids,
        home=home,
        det_image=det_image,
        det_box=_boxes("detections.boxes", detections.boxes, m),
        det_score=score,
        true_image=true_image,
        true_box=_boxes("truth.boxes", truth.boxes, t),
        true_id=_numbers("truth.ids", truth.ids, (t,), integers=True),
        galleries=listed,
        cameras=cameras,
        images=images,
        query_features=query_features,
        det_features=det_features,
        det_query=det_query,
        det_similarity=det_similarity,
    )
