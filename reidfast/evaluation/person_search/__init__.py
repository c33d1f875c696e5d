# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Person search: a query is a person in one image, the answers are boxes in whole images.

Two protocols. `cuhk_sysu` asks, in every gallery image that shows the person, for one box that lies well enough, and
multiplies the average precision by the share of those images in which there was one. `prw` names every detected box by
the true box it covers best, and then ranks boxes as Market-1501 ranks images: another camera's boxes of the person are
right, the own camera's and badly placed ones do not count, boxes that were never found count as found last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reidfast.evaluation._core.metrics import Floats, Ints
from reidfast.evaluation._core.options import check_choice, check_count
from reidfast.evaluation.person_search.boxes import box_iou
from reidfast.evaluation.person_search.cuhk_sysu import cuhk_hits
from reidfast.evaluation.person_search.inputs import (
    OP,
    Detections,
    SearchQueries,
    SearchTruth,
    read_numbers,
    read_search,
)
from reidfast.evaluation.person_search.prw import PrwLabels

__all__ = [
    "Detections",
    "PersonSearch",
    "SearchQueries",
    "SearchTruth",
    "box_iou",
    "person_search",
    "person_search_sweep",
]

PROTOCOLS = {"cuhk_sysu": "step", "prw": "trapezoid"}


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


def person_search(
    queries: SearchQueries,
    detections: Detections,
    truth: SearchTruth,
    *,
    protocol: str = "cuhk_sysu",
    galleries: Sequence[Any] | None = None,
    image_camids: Any = None,
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
        image_camids: (images,) camera of each image: needed by `prw` and by `other_cameras`.
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
        >>> queries = SearchQueries(pids=[7], images=[-1], features=[[1.0, 0.0]])
        >>> detections = Detections([0, 1], [[0, 0, 10, 20], [5, 5, 15, 25]], features=[[0.9, 0.1], [0.1, 0.9]])
        >>> truth = SearchTruth([0, 1], [[0, 0, 10, 21], [50, 50, 60, 70]], [7, 7])
        >>> person_search(queries, detections, truth).mean_ap  # one of two images, and that one first
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
    table = read_search(queries, detections, truth, galleries, image_camids)
    if table.cameras is None and (protocol == "prw" or other_cameras):
        reason = "protocol 'prw'" if protocol == "prw" else "other_cameras"
        raise ValueError(f"{OP}: expected image_camids, the camera of each image, for {reason}; got none")
    n = len(table.pids)
    ap, positives, found = np.full(n, np.nan), np.zeros(n, np.int64), np.zeros(n, np.int64)
    first_match = np.full(n, -1, np.int64)
    labels = PrwLabels(table, iou) if protocol == "prw" else None
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
            hits, count = cuhk_hits(table, q, rows, similarity, searched, allowed, iou)
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
    scores = read_numbers("scores", detections.scores, (len(detections.scores),))
    ordered = np.sort(scores)
    images = len(np.unique(read_numbers("images", detections.images, (len(scores),), integers=True)))
    out = []
    for i in range(pieces):
        threshold = float(ordered[i * len(ordered) // pieces])
        result = person_search(queries, detections, truth, score_threshold=threshold, **options)
        out.append((float((scores >= threshold).sum() / images), result))
    return out


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
