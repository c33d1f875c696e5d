# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What a person search is given: read, checked, on the host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidfast._arrays import to_numpy
from reidfast.evaluation._core.metrics import Floats, Ints

OP = "person_search"
TILE = 1 << 22  # similarities held at a time


class SearchQueries(NamedTuple):
    """The persons searched for.

    Attributes:
        pids: (Q,) integers, the persons.
        images: (Q,) integers, the image each was cut from, numbered as the gallery's; -1 where it is not among them.
        features: (Q, D), compared with the detections' by cosine; None where the detections bring similarities.
    """

    pids: Any
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
        pids: (N,) integers; below 0: a person, but nobody says who.
    """

    images: Any
    boxes: Any
    pids: Any


@dataclass
class SearchTable:
    """Everything, checked, on the host."""

    pids: Ints
    home: Ints
    det_image: Ints
    det_box: Floats
    det_score: Floats | None
    true_image: Ints
    true_box: Floats
    true_pid: Ints
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
        n, m = len(self.pids), len(self.det_image)
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


def read_numbers(name: str, x: Any, shape: tuple[int, ...], *, integers: bool = False) -> NDArray[Any]:
    try:
        values = to_numpy(x)
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
    boxes = read_numbers(name, x, (n, 4))
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
    values = to_numpy(x)
    if values.ndim != 2 or len(values) != n:
        raise ValueError(f"{OP}: expected {name} of shape ({n}, D), got {values.shape}")
    features = torch.from_numpy(read_numbers(name, values, values.shape))
    return features / features.norm(dim=1, keepdim=True).clamp(min=1e-300)


def _in_range(name: str, values: Ints, low: int, high: int, of: str) -> None:
    wrong = np.flatnonzero((values < low) | (values >= high))
    if len(wrong):
        raise ValueError(f"{OP}: expected {name} in [{low}, {high}), {of}; got {values[wrong[0]]} in row {wrong[0]}")


def read_search(
    queries: SearchQueries, detections: Detections, truth: SearchTruth, galleries: Any, image_camids: Any
) -> SearchTable:
    n, m, t = (
        _length("queries.pids", queries.pids),
        _length("detections.images", detections.images),
        _length("truth.pids", truth.pids),
    )
    if not n:
        raise ValueError(f"{OP}: expected at least one query, got none")
    pids = read_numbers("queries.pids", queries.pids, (n,), integers=True)
    if (pids < 0).any():
        raise ValueError(f"{OP}: expected queries of known persons, got pid {pids.min()} in row {int(pids.argmin())}")
    home = read_numbers("queries.images", queries.images, (n,), integers=True)
    det_image = read_numbers("detections.images", detections.images, (m,), integers=True)
    true_image = read_numbers("truth.images", truth.images, (t,), integers=True)
    cameras, listed = None, None
    highest = max((int(x.max()) + 1 for x in (home, det_image, true_image) if len(x)), default=0)
    if galleries is not None:
        if _length("galleries", galleries) != n:
            raise ValueError(f"{OP}: expected one gallery for each of {n} queries, got {len(galleries)}")
        listed = [read_numbers("galleries", g, (_length("galleries", g),), integers=True) for g in galleries]
        highest = max([highest, *(int(g.max()) + 1 for g in listed if len(g))])
    images, of = highest, "the images"
    if image_camids is not None:
        images, of = _length("image_camids", image_camids), "as many as image_camids has"
        cameras = read_numbers("image_camids", image_camids, (images,), integers=True)
    _in_range("queries.images", home, -1, images, of)
    _in_range("detections.images", det_image, 0, images, of)
    _in_range("truth.images", true_image, 0, images, of)
    if listed is not None:
        for g in listed:
            _in_range("galleries", g, 0, images, of)
        listed = [np.unique(g) for g in listed]
    score = None if detections.scores is None else read_numbers("detections.scores", detections.scores, (m,))
    det_query = det_similarity = query_features = det_features = None
    if detections.queries is not None or detections.similarities is not None:
        if detections.queries is None or detections.similarities is None or detections.features is not None:
            raise ValueError(
                f"{OP}: expected detections made for one query each to have queries and similarities and no features"
            )
        det_query = read_numbers("detections.queries", detections.queries, (m,), integers=True)
        _in_range("detections.queries", det_query, 0, n, "the queries")
        det_similarity = read_numbers("detections.similarities", detections.similarities, (m,))
    else:
        if queries.features is None or (detections.features is None and m):
            raise ValueError(f"{OP}: expected features of queries and detections, or detections with similarities")
        query_features = _unit("queries.features", queries.features, n)
        width = query_features.shape[1]
        det_features = _unit("detections.features", detections.features, m) if m else query_features.new_zeros(0, width)
        if det_features.shape[1] != width:
            raise ValueError(f"{OP}: expected features of one size, got {width} and {det_features.shape[1]}")
    return SearchTable(
        pids=pids,
        home=home,
        det_image=det_image,
        det_box=_boxes("detections.boxes", detections.boxes, m),
        det_score=score,
        true_image=true_image,
        true_box=_boxes("truth.boxes", truth.boxes, t),
        true_pid=read_numbers("truth.pids", truth.pids, (t,), integers=True),
        galleries=listed,
        cameras=cameras,
        images=images,
        query_features=query_features,
        det_features=det_features,
        det_query=det_query,
        det_similarity=det_similarity,
    )
