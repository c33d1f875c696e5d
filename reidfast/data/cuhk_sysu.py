# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""CUHK-SYSU (PSDB): street and film pictures for person search, by its .mat files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reidfast.data.registry import Root, find_folder
from reidfast.data.search import Floats, Queries, Scenes, SearchData, search_reader

SIZES = (50, 100, 500, 1000, 2000, 4000)
PUBLISHED: Mapping[str, Mapping[str, int]] = {
    "train": {"images": 11206, "ids": 5532},
    "gallery": {"images": 6978, "ids": 2900},
}


def load_mat(name: str, path: Path, key: str) -> Any:
    """One variable of a .mat file; FileNotFoundError or ValueError naming the file."""
    from scipy.io import loadmat

    if not path.is_file():
        raise FileNotFoundError(f"{name}: no such file: {path}")
    try:
        content = loadmat(path, squeeze_me=True)
    except Exception as error:
        raise ValueError(f"{name}: expected a MATLAB file, got {path}: {error}") from None
    if key not in content:
        found = ", ".join(k for k in content if not k.startswith("__"))
        raise ValueError(f"{name}: expected {key} in {path}, found {found or 'nothing'}")
    return content[key]


def rows(x: Any) -> list[Any]:
    """The structs of an array of structs, or of a cell of them, however deep MATLAB wrapped each."""
    out = []
    for row in np.atleast_1d(np.asarray(x)):
        while isinstance(row, np.ndarray) and row.dtype.names is None and row.size == 1:
            row = row.reshape(-1)[0]
        out.append(row.reshape(-1)[0] if isinstance(row, np.ndarray) and row.dtype.names else row)
    return out


def text(x: Any) -> str:
    """A string, wrapped or not."""
    return str(np.asarray(x).reshape(-1)[0])


def corner_boxes(x: Any) -> Floats:
    """x, y, w, h in any wrapping -> (n, 4) as x1, y1, x2, y2; n is 0 for an empty array."""
    boxes = np.asarray(x, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


@search_reader("cuhk_sysu")
def cuhk_sysu(name: str, root: Root | None = None, *, gallery: int = 100) -> SearchData:
    """CUHK-SYSU: `Image/SSM`, `annotation/Images.mat`, `pool.mat`, and `test/train_test/Train.mat`, `TestG<size>.mat`.

    Training persons are numbered from 1 in the order of Train.mat, the searched ones after them. Each TestG file there
    is gives a list of gallery images; `gallery` names the usual one, -1 all of them. There is one camera: 0.
    """
    folder = find_folder(name, root, ["cuhk_sysu", "CUHK-SYSU", "CUHK_SYSU", "psdb"], ["annotation/Images.mat"])
    annotation, tables = folder / "annotation", folder / "annotation" / "test" / "train_test"
    boxes: dict[str, Floats] = {}
    for row in rows(load_mat(name, annotation / "Images.mat", "Img")):
        found = np.concatenate([np.empty((0, 4)), *(corner_boxes(b[0]) for b in rows(row[2]))])
        boxes[text(row[0])] = found[(found[:, 2:] > found[:, :2]).all(1)]
    pids = {image: np.full(len(b), -1, np.int64) for image, b in boxes.items()}
    unknown = 0

    def mark(image: str, box: Floats, pid: int) -> None:
        nonlocal unknown
        same = np.flatnonzero((boxes[image] == box).all(1)) if image in boxes else np.empty(0, np.int64)
        if len(same):
            pids[image][same[0]] = pid
        else:
            unknown += 1

    training = rows(load_mat(name, tables / "Train.mat", "Train"))
    for number, person in enumerate(training, 1):
        for scene in rows(person[2]):
            mark(text(scene[0]), corner_boxes(scene[1]), number)
    sizes = [s for s in SIZES if (tables / f"TestG{s}.mat").is_file()]
    if 50 not in sizes:
        raise FileNotFoundError(f"{name}: no such file: {tables / 'TestG50.mat'}, which says who is searched for")
    protocol = {s: load_mat(name, tables / f"TestG{s}.mat", f"TestG{s}") for s in sizes}
    pool = [text(row) for row in np.atleast_1d(load_mat(name, annotation / "pool.mat", "pool"))]
    number_of = {image: i for i, image in enumerate(pool)}
    images, query_boxes, people = [], [], []
    for number, entry in enumerate(rows(protocol[50]), len(training) + 1):
        query = rows(entry["Query"])[0]
        box = corner_boxes(query[1])
        mark(text(query[0]), box, number)
        for scene in rows(entry["Gallery"]):
            if np.size(scene[1]):
                mark(text(scene[0]), corner_boxes(scene[1]), number)
        images.append(_number(name, number_of, text(query[0])))
        query_boxes.append(box[0])
        people.append(number)
    lists = {
        str(size): tuple(
            np.array([_number(name, number_of, text(scene[0])) for scene in rows(entry["Gallery"])], np.int64)
            for entry in rows(table)
        )
        for size, table in protocol.items()
    }
    searched = set(pool)
    parts = {
        "train": sorted(image for image in boxes if image not in searched),
        "gallery": pool,
    }
    missing = [image for image in pool if image not in boxes]
    if missing:
        raise ValueError(f"{name}: expected every image of pool.mat in Images.mat, got {missing[0]} in pool.mat alone")
    scenes = {
        part: Scenes.build(folder / "Image" / "SSM", [(image, 0, boxes[image], pids[image]) for image in listed])
        for part, listed in parts.items()
    }
    notes = [f"no TestG{s}.mat: no galleries of {s} images" for s in SIZES if s not in sizes]
    if unknown:
        notes.append(f"{unknown} boxes of persons are not among their image's boxes and were passed over")
    default = "all" if gallery == -1 else str(gallery)
    data = SearchData(
        name,
        scenes["train"],
        scenes["gallery"],
        Queries(np.array(images, np.int64), np.array(query_boxes), np.array(people, np.int64)),
        lists,
        default,
    )
    data.gallery_lists()  # the default is there
    return with_notes(data, PUBLISHED, notes)


def _number(name: str, number_of: Mapping[str, int], image: str) -> int:
    if image not in number_of:
        raise ValueError(f"{name}: expected searched images to be in pool.mat, got {image}")
    return number_of[image]


def with_notes(data: SearchData, published: Mapping[str, Mapping[str, int]], notes: list[str]) -> SearchData:
    """The set with its notes, and with what differs from the published counts; each is a DataWarning too."""
    import warnings

    from reidfast.data.registry import DataWarning

    said, counts = list(notes), data.summary()
    for part, wanted in published.items():
        for key, value in wanted.items():
            if counts[part][key] != value:
                said.append(f"{part}: expected {value:,} {key} as published, found {counts[part][key]:,}")
    for sentence in said:
        warnings.warn(f"{data.name}: {sentence}", DataWarning, stacklevel=4)
    fields = {k: getattr(data, k) for k in ("name", "train", "gallery", "queries", "galleries", "default", "info")}
    return SearchData(**fields, notes=(*data.notes, *said))
