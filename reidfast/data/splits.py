# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Splits kept as JSON lists beside the images: `{name, fields, train, query, gallery}`, rows path, pid, camid, ..."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reidfast.data.records import Records, ReidData
from reidfast.data.registry import Root, checked, data_root, reader, require_files

IMAGES = {
    "market751_mini": "market1501",
    "market751_holdout": "market1501",
    "market751_tracklets": "market1501",
    "cuhk03_np_detected": "cuhk03_np",
    "pets09_reentry": "pets09_s2l1",
}
PUBLISHED: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "market751_mini": {
        "train": {"images": 1758, "ids": 64},
        "query": {"images": 136, "ids": 32},
        "gallery": {"images": 568},
    },
    "market751_holdout": {
        "train": {"images": 8655, "ids": 500},
        "query": {"images": 960, "ids": 251},
        "gallery": {"images": 3321},
    },
    "cuhk03_np_detected": {
        "train": {"images": 7365, "ids": 767},
        "query": {"images": 1400, "ids": 700},
        "gallery": {"images": 5332, "ids": 700},
    },
    "pets09_reentry": {"query": {"images": 45, "ids": 7}, "gallery": {"images": 483, "ids": 10}},
    "market751_tracklets": {"train": {"images": 12936, "ids": 751, "cameras": 6}},
}


def _column(field: Any) -> str:
    """`camid(1..6)` -> camid; one name for one thing: seq -> sequence."""
    name = str(field).partition("(")[0].strip()
    return {"seq": "sequence"}.get(name, name)


def _split_table(name: str, at: Path, root: Path, split: str, rows: Any, fields: list[str]) -> Records:
    if not isinstance(rows, list):
        raise ValueError(f"{name}: expected a list of rows under {split!r} in {at}, got {type(rows).__name__}")
    width = len(fields)
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != width or not isinstance(row[0], str):
            raise ValueError(f"{name}: expected rows {fields} under {split!r} in {at}, got {row!r} at {i}")
    try:
        numbers = np.array([row[1:] for row in rows], np.int64).reshape(-1, width - 1)
    except (ValueError, TypeError):
        raise ValueError(f"{name}: expected integers after the path under {split!r} in {at}") from None
    extra = {fields[j + 1]: numbers[:, j] for j in range(2, width - 1)}
    return Records(root, tuple(row[0] for row in rows), numbers[:, 0], numbers[:, 1], extra)


def _tracklet_table(name: str, at: Path, root: Path, rows: Any, fields: list[Any], folder: str) -> Records:
    """Tracklets as one table of frames; the columns `tracklet` and `position` say which of them, and where in it."""
    paths: list[str] = []
    numbers: list[tuple[int, ...]] = []
    try:
        for k, (pid, camid, sequence, frames) in enumerate(rows):
            if isinstance(sequence, str):
                sequence = sequence.lstrip("T")
            for j, frame in enumerate(frames):
                paths.append(frame if "/" in frame else f"{folder}/{frame}")
                numbers.append((int(pid), int(camid), int(sequence), k, j))
    except (ValueError, TypeError):
        raise ValueError(f"{name}: expected tracklet rows {fields} in {at}") from None
    table = np.array(numbers, np.int64).reshape(-1, 5)
    names = (_column(fields[2]) if len(fields) > 2 else "sequence", "tracklet", "position")
    extra = dict(zip(names, table[:, 2:].T, strict=True))
    return Records(root, tuple(paths), table[:, 0], table[:, 1], extra)


def read_json(name: str, at: Path, root: Path) -> ReidData:
    """One split file over the images in `root`. Tracklets, where listed: `info["tracklets"]`, a table of frames."""
    try:
        content = json.loads(at.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file: {at}") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: expected a JSON split in {at}, got {error}") from None
    if not isinstance(content, dict) or not ("train" in content or "query" in content or "tracklets" in content):
        raise ValueError(f"{name}: expected the keys train, query, gallery (or tracklets) in {at}")
    info: dict[str, Any] = {"title": content.get("name", name)}
    fields = [_column(f) for f in content.get("fields", ["path", "pid", "camid"]) if isinstance(f, str)]
    tables = {}
    for split in ("train", "query", "gallery"):
        rows = content.get(split, [])
        tables[split] = _split_table(name, at, root, split, rows, fields) if rows else Records.empty(root)
    if "tracklets" in content:
        fields_ = list(content.get("tracklet_fields") or content.get("fields") or [])
        frames = _tracklet_table(name, at, root, content["tracklets"], fields_, "bounding_box_train")
        info["tracklets"] = frames
        if not any(len(t) for t in tables.values()):
            tables["train"] = frames
    require_files(name, *tables.values())
    return ReidData(name, tables["train"], tables["query"], tables["gallery"], info=info)


@reader(*IMAGES)
def named_split(name: str, root: Root | None = None) -> ReidData:
    """A split of `<root>/splits/<name>.json` over the data set it divides."""
    base = data_root(name, root)
    at, images = base / "splits" / f"{name}.json", base / IMAGES[name]
    for path, kind in ((at, "split file"), (images, "image folder")):
        if not path.exists():
            raise FileNotFoundError(f"{name}: found no {kind} {path}")
    return checked(read_json(name, at, images), PUBLISHED[name])


@reader("json")
def json_file(name: str, root: Root | None = None, *, images: Root | None = None) -> ReidData:
    """Any split file: `root` is the file, `images` the folder its paths are relative to (default: the file's own)."""
    if root is None:
        raise ValueError(f"{name}: expected root, the path of a JSON split, got none")
    at = Path(root).expanduser()
    return read_json(at.stem, at, Path(images).expanduser() if images is not None else at.parent)
