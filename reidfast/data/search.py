# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Person-search data: whole images with boxes, persons to search for in them, and lists of images to search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from reidfast.data.images import decode
from reidfast.data.records import Ints
from reidfast.data.registry import Root
from reidfast.evaluation import SearchQueries, SearchTruth

Floats = NDArray[np.float64]
SearchReader = Callable[..., "SearchData"]
_READERS: dict[str, SearchReader] = {}


class Boxes(NamedTuple):
    """Boxes of one image: (n, 4) as x1, y1, x2, y2, and with each a number: a person, or a score."""

    boxes: Floats
    values: NDArray[Any]


def box_array(name: str, boxes: ArrayLike) -> Floats:
    """Boxes (n, 4) as float64; ValueError where they are none."""
    values = np.asarray(boxes, np.float64)
    if values.size == 0:
        return np.empty((0, 4))
    if values.ndim != 2 or values.shape[1] != 4:
        raise ValueError(f"{name}: expected boxes of shape (n, 4), got {values.shape}")
    if not np.isfinite(values).all() or (values[:, 2:] < values[:, :2]).any():
        raise ValueError(f"{name}: expected boxes as finite x1, y1, x2, y2 with x2 >= x1 and y2 >= y1")
    return values


@dataclass(frozen=True, eq=False)
class Scenes:
    """A table of whole images and a table of the people in them.

    Args:
        root: Folder that `paths` are relative to.
        paths: One path an image, with forward slashes.
        camids: Camera of each image, (n,).
        box_images: Image of each box, (N,), ascending.
        boxes: (N, 4) as x1, y1, x2, y2 in pixels.
        pids: Person of each box, (N,); below 0: nobody says who (PRW: -2).
        detected: A detector's boxes (image of each, boxes, scores), where the set brings some.
        frames: Moment of each image, (n,), where there is one.
    """

    root: Path
    paths: tuple[str, ...]
    camids: Ints
    box_images: Ints
    boxes: Floats
    pids: Ints
    detected: tuple[Ints, Floats, Floats] | None = None
    frames: Ints | None = None
    _ends: Ints = field(init=False, repr=False)
    _detected_ends: Ints | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        put, n = object.__setattr__, len(self.paths)
        put(self, "root", Path(self.root))
        put(self, "paths", tuple(self.paths))
        for name in ("camids", "box_images", "pids"):
            put(self, name, np.asarray(getattr(self, name), np.int64).reshape(-1))
        put(self, "boxes", box_array("Scenes", self.boxes))
        if len(self.camids) != n:
            raise ValueError(f"Scenes: expected {n} cameras to match paths, got {len(self.camids)}")
        if not len(self.box_images) == len(self.boxes) == len(self.pids):
            raise ValueError(
                f"Scenes: expected an image and a person for each box, got {len(self.box_images)}, {len(self.pids)} "
                f"for {len(self.boxes)}"
            )
        put(self, "_ends", _ends("boxes", self.box_images, n))
        put(self, "_detected_ends", None)
        if self.detected is not None:
            images, boxes, scores = self.detected
            images, scores = np.asarray(images, np.int64), np.asarray(scores, np.float64)
            put(self, "detected", (images, box_array("Scenes", boxes), scores))
            put(self, "_detected_ends", _ends("detections", images, n))

    @staticmethod
    def empty() -> Scenes:
        """No images."""
        nothing = np.empty(0, np.int64)
        return Scenes(Path("."), (), nothing, nothing, np.empty((0, 4)), nothing)

    @staticmethod
    def build(
        root: Root,
        rows: Iterable[tuple[str, int, ArrayLike, ArrayLike]],
        *,
        detected: Sequence[tuple[ArrayLike, ArrayLike]] | None = None,
        frames: ArrayLike | None = None,
    ) -> Scenes:
        """From a row (path, camera, boxes (n, 4), pids (n,)) per image, and detections (boxes, scores) per image."""
        paths, cameras, boxes, pids, images = [], [], [], [], []
        for i, (path, camera, box, pid) in enumerate(rows):
            paths.append(path)
            cameras.append(camera)
            boxes.append(box_array(path, box))
            pids.append(np.asarray(pid, np.int64).reshape(-1))
            images.append(np.full(len(boxes[-1]), i))
        found = None
        if detected is not None:
            parts = [box_array("detections", box) for box, _ in detected]
            index = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
            scores = [np.asarray(s, np.float64).reshape(-1) for _, s in detected]
            found = (index, np.concatenate([np.empty((0, 4)), *parts]), np.concatenate([np.empty(0), *scores]))
        return Scenes(
            Path(root),
            tuple(paths),
            np.array(cameras, np.int64),
            np.concatenate([np.empty(0, np.int64), *images]),
            np.concatenate([np.empty((0, 4)), *boxes]),
            np.concatenate([np.empty(0, np.int64), *pids]),
            found,
            None if frames is None else np.asarray(frames, np.int64),
        )

    def __len__(self) -> int:
        return len(self.paths)

    def absolute(self, index: int) -> Path:
        """Where image `index` lies."""
        return self.root / self.paths[index]

    def image(self, index: int) -> Image.Image:
        """The picture, RGB."""
        return decode(self.absolute(index))

    def people(self, index: int) -> Boxes:
        """The true boxes of image `index` and who they are."""
        rows = slice(self._ends[index], self._ends[index + 1])
        return Boxes(self.boxes[rows], self.pids[rows])

    def detections(self, index: int) -> Boxes:
        """The detector's boxes of image `index` and their scores; ValueError where the set brings none."""
        if self.detected is None or self._detected_ends is None:
            raise ValueError("Scenes: expected a set that brings detections, got one without; choose other proposals")
        rows = slice(self._detected_ends[index], self._detected_ends[index + 1])
        return Boxes(self.detected[1][rows], self.detected[2][rows])

    @property
    def truth(self) -> SearchTruth:
        """What `evaluation.person_search` takes as truth."""
        return SearchTruth(self.box_images, self.boxes, self.pids)


def _ends(name: str, images: Ints, n: int) -> Ints:
    if len(images) and (images[0] < 0 or images[-1] >= n or (np.diff(images) < 0).any()):
        raise ValueError(f"Scenes: expected the images of {name} ascending, in [0, {n})")
    return np.searchsorted(images, np.arange(n + 1))


@dataclass(frozen=True, eq=False)
class Queries:
    """The persons to search for.

    Args:
        images: Image of the gallery that shows each, (Q,).
        boxes: Where, (Q, 4).
        pids: Who, (Q,).
    """

    images: Ints
    boxes: Floats
    pids: Ints

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "images", np.asarray(self.images, np.int64).reshape(-1))
        put(self, "pids", np.asarray(self.pids, np.int64).reshape(-1))
        put(self, "boxes", box_array("Queries", self.boxes))
        if not len(self.images) == len(self.boxes) == len(self.pids):
            raise ValueError("Queries: expected an image, a box and a person for each query")

    def __len__(self) -> int:
        return len(self.pids)

    def select(self, rows: ArrayLike) -> Queries:
        """Some of them."""
        index = np.asarray(rows, np.int64)
        return Queries(self.images[index], self.boxes[index], self.pids[index])

    def with_features(self, features: Any = None) -> SearchQueries:
        """What `evaluation.person_search` takes as queries."""
        return SearchQueries(self.pids, self.images, features)


@dataclass(frozen=True, eq=False)
class SearchData:
    """A person-search set.

    Args:
        name: How it was asked for.
        train: Images to train on.
        gallery: Images to search, the queries' own among them.
        queries: Whom to search for.
        galleries: Lists of gallery images for each query, by name ("50", "100" ...; every set has "all": None).
        default: The list that scores are usually given for.
        notes: What is missing or differs from what was published.
        info: Further facts.
    """

    name: str
    train: Scenes
    gallery: Scenes
    queries: Queries
    galleries: Mapping[str, tuple[Ints, ...] | None] = field(default_factory=dict)
    default: str = "all"
    notes: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "galleries", {"all": None, **self.galleries})

    @property
    def splits(self) -> dict[str, Scenes]:
        """The images by part."""
        return {"train": self.train, "gallery": self.gallery}

    def gallery_lists(self, name: str | int | None = None) -> tuple[Ints, ...] | None:
        """The lists of that name (None: the default); None where every image is searched for everybody."""
        key = self.default if name is None else str(name)
        if key not in self.galleries:
            raise ValueError(f"{self.name}: expected a gallery among {', '.join(self.galleries)}, got {key}")
        return self.galleries[key]

    def summary(self) -> dict[str, dict[str, int]]:
        """Images, boxes, named persons and cameras of each part."""
        table = {}
        for name, scenes in self.splits.items():
            named = scenes.pids >= 0
            table[name] = {
                "images": len(scenes),
                "boxes": len(scenes.boxes),
                "named": int(named.sum()),
                "ids": len(np.unique(scenes.pids[named])),
                "cameras": len(np.unique(scenes.camids)),
            }
        return table

    def describe(self) -> str:
        """`summary()` as a small text table, with the notes under it."""
        columns = ("images", "boxes", "named", "ids", "cameras")
        lines = [self.name, " " * 10 + "".join(f"{c:>9}" for c in columns)]
        lines += [f"{part:10}" + "".join(f"{row[c]:9,}" for c in columns) for part, row in self.summary().items()]
        lines.append(f"{'query':10}{len(self.queries):9,} of {len(np.unique(self.queries.pids)):,} persons")
        lines.append(f"galleries {', '.join(self.galleries)}; usually {self.default}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def search_reader(*names: str) -> Callable[[SearchReader], SearchReader]:
    """Registers `read(name, root, **options) -> SearchData` under one or several names."""

    def register(function: SearchReader) -> SearchReader:
        for name in names:
            _READERS[name] = function
        return function

    return register


def list_search_datasets() -> list[str]:
    """Names that `load_search` knows."""
    return sorted(_READERS)


def load_search(name: str, root: Root | None = None, **options: Any) -> SearchData:
    """Reads a person-search set's tables; no picture is decoded (PETS: its video, once).

    Args:
        name: One of `list_search_datasets()`.
        root: As in `load_dataset`.
        **options: The reader's own; see docs/data.md.

    Raises:
        ValueError: Unknown name or option value; a file that is not what its layout says.
        FileNotFoundError: The data is not there; the message says what was looked for, and where.
    """
    if name not in _READERS:
        raise ValueError(f"load_search: expected one of {', '.join(list_search_datasets())}, got {name!r}")
    return _READERS[name](name, root, **options)


def draw_queries(
    scenes: Scenes, *, per_person: int, seed: int = 0, apart: int = 1, across: bool = True
) -> tuple[Queries, tuple[Ints, ...]]:
    """Draws queries from the gallery's own named boxes.

    Args:
        scenes: The gallery.
        per_person: At most this many of each person, one a camera where there are several cameras.
        seed: Seed of the draw.
        apart: Images of the same camera whose frames are nearer than this to the query's are not searched.
        across: Only persons who can be found in another image that is searched.

    Returns:
        The queries, and for each the images searched (all that are apart).
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x5EA2C4]))
    frames = scenes.frames if scenes.frames is not None else np.arange(len(scenes)) * max(1, apart)
    rows, lists = [], []
    for pid in np.unique(scenes.pids[scenes.pids >= 0]):
        mine = np.flatnonzero(scenes.pids == pid)
        mine = mine[np.argsort(rng.random(len(mine)), kind="stable")]
        cameras = scenes.camids[scenes.box_images[mine]]
        turn = np.array([(cameras[:i] == c).sum() for i, c in enumerate(cameras)])  # first of each camera, then seconds
        taken = 0
        for row in mine[np.argsort(turn, kind="stable")]:
            image = scenes.box_images[row]
            near = (scenes.camids == scenes.camids[image]) & (np.abs(frames - frames[image]) < apart)
            near[image] = True
            searched = np.flatnonzero(~near)
            if across and not np.isin(scenes.box_images[mine], searched).any():
                continue
            rows.append(row)
            lists.append(searched)
            taken += 1
            if taken == per_person:
                break
    index = np.array(rows, np.int64)
    return Queries(scenes.box_images[index], scenes.boxes[index], scenes.pids[index]), tuple(lists)


def draw_galleries(
    scenes: Scenes, queries: Queries, sizes: Iterable[int], seed: int = 0
) -> dict[str, tuple[Ints, ...]]:
    """Lists as CUHK-SYSU has them: every image with the person but the query's own, and others drawn up to the size."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x6A11E41]))
    out: dict[str, list[Ints]] = {str(size): [] for size in sizes}
    for image, pid in zip(queries.images, queries.pids, strict=True):
        shows = np.zeros(len(scenes), bool)
        shows[scenes.box_images[scenes.pids == pid]] = True
        shows[image] = False
        others = np.flatnonzero(~shows & (np.arange(len(scenes)) != image))
        others = others[np.argsort(rng.random(len(others)), kind="stable")]
        for size in sizes:
            have = np.flatnonzero(shows)
            out[str(size)].append(np.sort(np.concatenate([have, others[: max(0, size - len(have))]])))
    return {name: tuple(lists) for name, lists in out.items()}
