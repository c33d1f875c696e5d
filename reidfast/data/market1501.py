# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Market-1501 and everything else that names its files `0002_c1s1_000451_03.jpg`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from reidfast.data.records import Records, ReidData
from reidfast.data.registry import Root, checked, find_folder, list_images, reader

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
PUBLISHED: Mapping[str, Mapping[str, int]] = {
    "train": {"images": 12936, "ids": 751, "cameras": 6},
    "query": {"images": 3368, "ids": 750, "cameras": 6},
    "gallery": {"images": 19732, "ids": 750, "cameras": 6, "junk": 3819, "distractors": 2798},
}
# pid, camera, then what there is of sequence, frame, box: Market c1s1_000451_03, Duke c2_f0046302, CUHK03-NP c1_301
NAME = re.compile(r"^(-1|\d+)_c(\d+)(?:s(\d+))?_f?(\d+)(?:_(\d+))?")


def read_split(name: str, root: Path, folder: str) -> Records:
    """One folder of Market-style names as a table with the columns `sequence` and `frame`; no folder: no rows."""
    at = root / folder
    if not at.is_dir():
        return Records.empty(root)
    paths, rows = [], []
    for leaf in list_images(at):
        match = NAME.match(leaf)
        if match is None:
            raise ValueError(f"{name}: expected a name like 0002_c1s1_000451_03.jpg in {at}, got {leaf}")
        paths.append(f"{folder}/{leaf}")
        rows.append([int(g or 0) for g in match.groups()[:4]])
    table = np.array(rows, np.int64).reshape(-1, 4)
    return Records(root, tuple(paths), table[:, 0], table[:, 1], {"sequence": table[:, 2], "frame": table[:, 3]})


def read_folders(name: str, root: Path, *, distractor: int | None = 0) -> tuple[ReidData, list[str]]:
    """The three folders under `root`, and a sentence about those that are not there."""
    tables = {split: read_split(name, root, folder) for split, folder in FOLDERS.items()}
    absent = [folder for split, folder in FOLDERS.items() if not len(tables[split])]
    notes = []
    if absent:
        left = " and ".join(split for split in FOLDERS if len(tables[split])) or "nothing"
        notes.append(f"no images in {' and '.join(absent)} under {root}: only {left} can be used")
    return ReidData(name, tables["train"], tables["query"], tables["gallery"], distractor), notes


@reader("market1501")
def market1501(name: str, root: Root | None = None) -> ReidData:
    """Market-1501 in its official folders. Junk (-1) and distractors (0) stay in the gallery, as published."""
    folder = find_folder(
        name, root, ["market1501", "Market-1501-v15.09.15", "Market-1501", "Market1501"], FOLDERS.values()
    )
    data, notes = read_folders(name, folder)
    return checked(data, PUBLISHED, notes)
