# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Where to look in an image: boxes that may hold a person, from anything that gives boxes.

A provider is called as `provider(scenes, index)` and returns boxes (n, 4) in pixels and a score for each, best first.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reidfast.data.search import Boxes, Floats, Scenes
from reidfast.evaluation import box_iou

__all__ = [
    "Detector",
    "ObjectnessBoxes",
    "Oracle",
    "Proposals",
    "RandomBoxes",
    "SelectiveSearch",
    "SimulatedDetector",
    "SlidingBoxes",
    "create_proposals",
    "recall",
    "suppress",
]


class Proposals(Protocol):
    """Boxes of an image that may hold a person."""

    def __call__(self, scenes: Scenes, index: int) -> Boxes:
        """Boxes (n, 4) and scores (n,), best first."""
        ...


class SlidingBoxes:
    """Boxes of a person's shape at every place and several sizes. Needs no picture, only its size.

    Args:
        heights: Shares of the image's height.
        aspect: Width over height.
        step: Share of the box by which the next one is moved.
        beyond: Share of the box that may lie outside of the image.
    """

    def __init__(
        self,
        heights: tuple[float, ...] = (0.22, 0.3, 0.4, 0.52),
        aspect: float = 0.4,
        step: float = 0.25,
        beyond: float = 0.1,
    ) -> None:
        if not heights or min(heights) <= 0 or aspect <= 0 or not 0 < step <= 1:
            raise ValueError(
                f"SlidingBoxes: expected heights, aspect > 0, step in (0, 1], got {heights}, {aspect}, {step}"
            )
        self.heights, self.aspect, self.step, self.beyond = tuple(heights), aspect, step, beyond

    def boxes(self, width: int, height: int) -> Floats:
        """All of them, for an image of that size."""
        out = []
        for share in self.heights:
            h = share * height
            w = self.aspect * h
            xs = np.arange(-self.beyond * w, width - (1 - self.beyond) * w + 1e-6, max(1.0, self.step * w))
            ys = np.arange(-self.beyond * h, height - (1 - self.beyond) * h + 1e-6, max(1.0, self.step * h / 2))
            x, y = np.meshgrid(xs, ys)
            out.append(np.stack([x.ravel(), y.ravel(), x.ravel() + w, y.ravel() + h], 1))
        return np.clip(np.concatenate(out), 0, [width, height, width, height])

    def __call__(self, scenes: Scenes, index: int) -> Boxes:
        """Every box scores 1."""
        with Image.open(scenes.absolute(index)) as image:
            boxes = self.boxes(*image.size)
        return Boxes(boxes, np.ones(len(boxes)))


class ObjectnessBoxes:
    """The sliding boxes that look least like what is around them.

    Alexe, Deselaers, Ferrari, "What is an object?", CVPR 2010: colour contrast (here: half the L1 distance of colour
    histograms inside and in a ring around the box) and edge density (gradient inside minus that of the ring), each
    brought to mean 0 and deviation 1 over the image, summed; then non-maximum suppression. All by summed-area tables.

    Args:
        count: Boxes to keep.
        sliding: The boxes to choose from.
        bins: Bins of each colour channel's histogram.
        ring: Width of the ring over the box's size.
        overlap: IoU above which the weaker box is dropped.
        size: Pixels of the longer side that the cues are computed at.
    """

    def __init__(
        self,
        count: int = 150,
        sliding: SlidingBoxes | None = None,
        bins: int = 3,
        ring: float = 0.25,
        overlap: float = 0.6,
        size: int = 240,
    ) -> None:
        if count < 1 or bins < 2 or ring <= 0 or size < 32:
            raise ValueError(
                f"ObjectnessBoxes: expected count >= 1, bins >= 2, ring > 0, size >= 32, got {count}, {bins}, {ring}, "
                f"{size}"
            )
        self.count, self.sliding, self.bins = count, sliding or SlidingBoxes(), bins
        self.ring, self.overlap, self.size = ring, overlap, size

    def __call__(self, scenes: Scenes, index: int) -> Boxes:
        """At most `count` boxes."""
        return self.of(scenes.image(index))

    def of(self, image: Image.Image) -> Boxes:
        """Of a picture at hand."""
        factor = min(1.0, self.size / max(image.size))
        small = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))
        pixels = np.asarray(small, np.float32)
        height, width = pixels.shape[:2]
        boxes = self.sliding.boxes(width, height)
        level = np.minimum((pixels / 256 * self.bins).astype(int), self.bins - 1)
        colour = (level[..., 0] * self.bins + level[..., 1]) * self.bins + level[..., 2]
        planes = [np.asarray(colour == c, np.float32) for c in np.unique(colour)]
        grey = pixels.mean(2)
        planes.append(np.hypot(*np.gradient(grey)).astype(np.float32))
        table = np.zeros((height + 1, width + 1, len(planes)), np.float64)
        table[1:, 1:] = np.stack(planes, 2).cumsum(0).cumsum(1)
        inner, inner_area = _sums(table, boxes)
        wide = (boxes[:, 2:] - boxes[:, :2]) * [self.ring * 1.5, self.ring / 2]
        around = np.concatenate([boxes[:, :2] - wide, boxes[:, 2:] + wide], 1)
        outer, outer_area = _sums(table, np.clip(around, 0, [width, height, width, height]))
        ring, ring_area = outer - inner, np.maximum(outer_area - inner_area, 1)
        inside, beside = inner / np.maximum(inner_area, 1)[:, None], ring / ring_area[:, None]
        contrast = np.abs(inside[:, :-1] - beside[:, :-1]).sum(1) / 2
        edges = inside[:, -1] - beside[:, -1]
        score = sum((cue - cue.mean()) / max(cue.std(), 1e-9) for cue in (contrast, edges))
        order = np.argsort(-score, kind="stable")
        keep = order[suppress(boxes[order], self.overlap, self.count)]
        return Boxes(boxes[keep] / factor, score[keep])


class SelectiveSearch:
    """Uijlings et al., "Selective Search for Object Recognition", IJCV 2013, where OpenCV's contributed modules are.

    Args:
        count: Boxes to keep, in the order OpenCV gives them.
        tall: Least height over width.
        size: Pixels of the longer side that it is run at.
    """

    def __init__(self, count: int = 300, tall: float = 1.2, size: int = 320) -> None:
        try:
            import cv2

            self.make: Any = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation  # type: ignore[attr-defined]
        except (ImportError, AttributeError) as error:
            raise ImportError(
                "SelectiveSearch: OpenCV's contributed modules are missing; pip install opencv-contrib-python-headless"
            ) from error
        self.count, self.tall, self.size = count, tall, size

    def __call__(self, scenes: Scenes, index: int) -> Boxes:
        """At most `count` boxes."""
        image = scenes.image(index)
        factor = min(1.0, self.size / max(image.size))
        small = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))
        search = self.make()
        search.setBaseImage(np.asarray(small)[:, :, ::-1].copy())
        search.switchToSelectiveSearchFast()
        found = np.asarray(search.process(), np.float64).reshape(-1, 4)
        found = found[found[:, 3] >= self.tall * found[:, 2]][: self.count]
        boxes = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1) / factor
        return Boxes(boxes, np.linspace(1, 0, len(boxes), endpoint=False))


class Detector:
    """The boxes of a detector that the set brings (PETS: its public detections).

    Args:
        threshold: Least score.
    """

    def __init__(self, threshold: float = -np.inf) -> None:
        self.threshold = threshold

    def __call__(self, scenes: Scenes, index: int) -> Boxes:
        """Best first."""
        boxes, scores = scenes.detections(index)
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= self.threshold]
        return Boxes(boxes[order], scores[order])


class Oracle:
    """The true boxes: what a perfect detector would give."""

    def __call__(self, scenes: Scenes, index: int) -> Boxes:
        """Every box scores 1."""
        boxes = scenes.people(index).boxes
        return Boxes(boxes, np.ones(len(boxes)))


class RandomBoxes:
    """Boxes of a person's shape at random: what any search has to beat.

    Args:
        count: Boxes an image.
        seed: Seed of the draw; an image's boxes depend on it and the image's number alone.
        heights: Range of shares of the image's height.
        aspect: Width over height.
    """

    def __init__(
        self, count: int = 100, seed: int = 0, heights: tuple[float, float] = (0.15, 0.55), aspect: float = 0.4
    ) -> None:
        self.count, self.seed, self.heights, self.aspect = count, seed, heights, aspect

    def __call__(self, scenes: Scenes, index: int) -> Boxes:
        """Scores are random too."""
        with Image.open(scenes.absolute(index)) as image:
            width, height = image.size
        rng = _rng(self.seed, index, 0x2A4D)
        h = rng.uniform(self.heights[0], self.heights[1], self.count) * height
        w = np.minimum(self.aspect * h, width)
        x, y = rng.random(self.count) * (width - w), rng.random(self.count) * (height - h)
        scores = np.sort(rng.random(self.count))[::-1]
        return Boxes(np.stack([x, y, x + w, y + h], 1), scores)


class SimulatedDetector:
    """What a detector of known faults would give: true boxes moved, missed, and boxes where nobody is.

    Args:
        seed: Seed of the faults; an image's depend on it and the image's number alone.
        jitter: Standard deviation of the sides over the box's size.
        miss: Share of people it does not see.
        copies: Boxes of each person it sees.
        clutter: Boxes an image that hold nobody.
    """

    def __init__(
        self, seed: int = 0, jitter: float = 0.06, miss: float = 0.05, copies: int = 2, clutter: int = 10
    ) -> None:
        if not 0 <= miss <= 1 or jitter < 0 or copies < 1 or clutter < 0:
            raise ValueError(
                f"SimulatedDetector: expected miss in [0, 1], jitter >= 0, copies >= 1, clutter >= 0, got {miss}, "
                f"{jitter}, {copies}, {clutter}"
            )
        self.seed, self.jitter, self.miss, self.copies, self.clutter = seed, jitter, miss, copies, clutter

    def __call__(self, scenes: Scenes, index: int) -> Boxes:
        """Best first; boxes of people score higher, but not always."""
        with Image.open(scenes.absolute(index)) as image:
            width, height = image.size
        rng = _rng(self.seed, index, 0xDE7)
        people = scenes.people(index).boxes
        people = np.repeat(people[rng.random(len(people)) >= self.miss], self.copies, 0)
        size = np.tile(people[:, 2:] - people[:, :2], 2)
        people = people + rng.normal(0, self.jitter, people.shape) * size
        h = rng.uniform(0.2, 0.5, self.clutter) * height
        x, y = rng.random(self.clutter) * (width - 0.4 * h), rng.random(self.clutter) * (height - h)
        boxes = np.concatenate([people, np.stack([x, y, x + 0.4 * h, y + h], 1)])
        boxes = np.clip(np.concatenate([boxes[:, :2], np.maximum(boxes[:, :2] + 2, boxes[:, 2:])], 1), 0, None)
        boxes = np.minimum(boxes, [width, height, width, height])
        scores = np.concatenate([rng.normal(1, 0.5, len(people)), rng.normal(0, 0.5, self.clutter)])
        order = np.argsort(-scores, kind="stable")
        return Boxes(boxes[order], scores[order])


_PROVIDERS: dict[str, Any] = {
    "sliding": SlidingBoxes,
    "objectness": ObjectnessBoxes,
    "selective_search": SelectiveSearch,
    "detector": Detector,
    "simulated": SimulatedDetector,
    "random": RandomBoxes,
    "oracle": Oracle,
}


def create_proposals(name: str, **options: Any) -> Proposals:
    """A provider by name: sliding, objectness, selective_search, detector, simulated, random, oracle."""
    if name not in _PROVIDERS:
        raise ValueError(f"create_proposals: expected one of {', '.join(_PROVIDERS)}, got {name!r}")
    try:
        made: Proposals = _PROVIDERS[name](**options)
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise ValueError(f"create_proposals: {name} does not take these options: {error}") from error
    return made


def suppress(boxes: Floats, overlap: float, count: int | None = None) -> NDArray[np.int64]:
    """Rows of boxes (n, 4), best first, that stay when each removes those after it of a higher IoU; at most `count`."""
    alive, keep = np.ones(len(boxes), bool), []
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        keep.append(i)
        if len(keep) == count:
            break
        rest = np.flatnonzero(alive[i + 1 :]) + i + 1
        alive[rest[box_iou(boxes[i], boxes[rest]) > overlap]] = False
    return np.array(keep, np.int64)


def recall(provider: Proposals, scenes: Scenes, iou: float = 0.5, named: bool = True) -> tuple[float, float]:
    """(Share of the people with a proposal of that IoU, proposals an image)."""
    found, total, boxes_seen = 0, 0, 0
    for i in range(len(scenes)):
        boxes, pids = scenes.people(i)
        people = boxes[pids >= 0] if named else boxes
        proposals = provider(scenes, i).boxes
        boxes_seen += len(proposals)
        total += len(people)
        if len(people) and len(proposals):
            found += int((box_iou(people[:, None], proposals).max(1) >= iou).sum())
    return found / max(1, total), boxes_seen / max(1, len(scenes))


def _rng(seed: int, index: int, purpose: int) -> np.random.Generator:
    key = np.array([seed & (2**64 - 1), purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, index, 0, 0], np.uint64)))


def _sums(table: Floats, boxes: Floats) -> tuple[Floats, Floats]:
    """Sums of each plane in boxes rounded to pixels, and the boxes' areas."""
    x1, y1, x2, y2 = np.round(boxes).astype(int).T
    total = table[y2, x2] - table[y1, x2] - table[y2, x1] + table[y1, x1]
    return total, ((x2 - x1) * (y2 - y1)).astype(np.float64)
