# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""PRW: frames of six campus cameras for person search."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from reidfast.data.cuhk_sysu import load_mat, text, with_notes
from reidfast.data.registry import Root, find_folder
from reidfast.data.search import Floats, Queries, Scenes, SearchData, search_reader

PUBLISHED: Mapping[str, Mapping[str, int]] = {
    "train": {"images": 5704, "ids": 482},
    "gallery": {"images": 6112, "ids": 450},
}
KEYS = ("box_new", "anno_file", "anno_previous")


def camera_of(name: str, frame: str) -> int:
    """`c1s1_000151` -> 1."""
    found = re.match(r"c(\d)", frame)
    if not found:
        raise ValueError(f"{name}: expected frames named like c1s1_000151, got {frame!r}")
    return int(found[1])


def read_annotation(name: str, path: Path) -> tuple[Floats, np.ndarray]:
    """Boxes (n, 4) as x1, y1, x2, y2 cut off at 0, and persons (-2: ambiguous), of a frame's .mat file."""
    from scipy.io import loadmat

    if not path.is_file():
        raise FileNotFoundError(f"{name}: no such file: {path}")
    content = loadmat(path)
    key = next((k for k in KEYS if k in content), None)
    if key is None:
        raise ValueError(f"{name}: expected one of {', '.join(KEYS)} in {path}")
    table = np.asarray(content[key], np.float64).reshape(-1, 5)
    corner = table[:, 1:3]
    boxes = np.clip(np.concatenate([corner, corner + table[:, 3:5]], 1), 0, None)
    return boxes, table[:, 0].astype(np.int64)


@search_reader("prw")
def prw(name: str, root: Root | None = None) -> SearchData:
    """PRW: `frames`, `annotations/<frame>.jpg.mat`, `frame_train.mat`, `frame_test.mat`, `query_info.txt`.

    Persons keep their numbers, -2 is ambiguous. `info["cameras"]` says that cameras matter: both protocols of
    `evaluation.person_search` apply.
    """
    folder = find_folder(name, root, ["prw", "PRW", "PRW-v16.04.20"], ["frame_test.mat", "query_info.txt"])
    parts = {}
    for part, key in (("train", "img_index_train"), ("gallery", "img_index_test")):
        listed = load_mat(name, folder / f"frame_{'train' if part == 'train' else 'test'}.mat", key)
        frames = [text(row) for row in np.atleast_1d(listed)]
        parts[part] = frames
    scenes = {
        part: Scenes.build(
            folder / "frames",
            [
                (f"{f}.jpg", camera_of(name, f), *read_annotation(name, folder / "annotations" / f"{f}.jpg.mat"))
                for f in frames
            ],
        )
        for part, frames in parts.items()
    }
    number_of = {frame: i for i, frame in enumerate(parts["gallery"])}
    listing = folder / "query_info.txt"
    if not listing.is_file():
        raise FileNotFoundError(f"{name}: no such file: {listing}")
    images, boxes, pids = [], [], []
    for line_number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            pid, x, y, w, h, frame = line.split()
            box = np.clip([float(x), float(y), float(x) + float(w), float(y) + float(h)], 0, None)
            images.append(number_of[frame.removesuffix(".jpg")])
            pids.append(int(pid))
        except ValueError:
            raise ValueError(f"{name}: expected 'pid x y w h frame' at {listing}:{line_number}, got {line!r}") from None
        except KeyError:
            raise ValueError(
                f"{name}: expected a frame of frame_test.mat at {listing}:{line_number}, got {line!r}"
            ) from None
        boxes.append(box)
    queries = Queries(np.array(images, np.int64), np.array(boxes), np.array(pids, np.int64))
    data = SearchData(name, scenes["train"], scenes["gallery"], queries, info={"cameras": True})
    notes = [] if len(queries) == 2057 else [f"query: expected 2,057 queries as published, found {len(queries):,}"]
    return with_notes(data, PUBLISHED, notes)
