# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Anybody's own images: one folder a person, or a CSV table."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reidfast.data.records import SPLITS, Records, ReidData, split_identities
from reidfast.data.registry import Root, data_root, list_images, reader, require_files

CAMERA = re.compile(r"^c?(\d+)(?:_|\.)")  # 3_0001.jpg, c3_0001.jpg, 3.jpg


def number_names(names: Sequence[str]) -> tuple[np.ndarray, bool]:
    """Identities as integers: the numbers themselves where every name is one (-1 too), else ranks of sorted names."""
    if all(re.fullmatch(r"-1|\d+", n) for n in names):
        return np.array([int(n) for n in names], np.int64), True
    rank = {n: i for i, n in enumerate(sorted(set(names)))}
    return np.array([rank[n] for n in names], np.int64), False


def _table(root: Path, rows: list[tuple[str, str, int]], pids: np.ndarray, numeric: bool) -> Records:
    extra = {} if numeric else {"name": np.array([r[1] for r in rows], dtype=str)}
    return Records(root, tuple(r[0] for r in rows), pids, np.array([r[2] for r in rows], np.int64), extra)


def _tree_rows(name: str, root: Path, prefix: str) -> list[tuple[str, str, int]]:
    rows = []
    for person in sorted(p.name for p in (root / prefix).iterdir() if p.is_dir() and not p.name.startswith(".")):
        for leaf in list_images(root / prefix / person):
            match = CAMERA.match(leaf)
            if match is None:
                at = root / prefix / person
                raise ValueError(f"{name}: expected names like <camera>_*.jpg (3_0001.jpg) in {at}, got {leaf}")
            rows.append(((Path(prefix) / person / leaf).as_posix(), person, int(match.group(1))))
    return rows


def _csv_rows(name: str, path: Path) -> list[tuple[str, str, int, str]]:
    rows = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        lacking = [c for c in ("path", "pid", "camid", "split") if c not in (table.fieldnames or ())]
        if lacking:
            raise ValueError(f"{name}: expected the columns path,pid,camid,split in {path}, no {', '.join(lacking)}")
        for row in table:
            where = f"{path}:{table.line_num}"
            if None in row.values() or not row["path"]:
                raise ValueError(f"{name}: expected four values at {where}, got {list(row.values())}")
            if row["split"] not in SPLITS:
                raise ValueError(f"{name}: expected split train, query or gallery at {where}, got {row['split']!r}")
            try:
                camid = int(row["camid"])
            except ValueError:
                raise ValueError(f"{name}: expected an integer camid at {where}, got {row['camid']!r}") from None
            rows.append((Path(row["path"]).as_posix(), row["pid"], camid, row["split"]))
    return rows


@reader("folder")
def folder(
    name: str, root: Root | None = None, *, test: float | None = None, queries: int = 1, seed: int = 0
) -> ReidData:
    """`<root>/<person>/<camera>_*.jpg`, the same under `train/`, `query/`, `gallery/`, or a CSV path,pid,camid,split.

    Args:
        name: The name asked for.
        root: The folder, or the CSV file; paths in a CSV are relative to the file. An
            `index.csv` in the folder is taken.
        test: Without `train/query/gallery` everything is training data; with `test` in (0, 1] that share of the
            identities is drawn (seeded) for testing, divided by Market's rule (`split_identities`).
        queries: Query images per identity and camera in that draw.
        seed: Seed of that draw.

    Person folders may have any names: all integers are taken as pids, otherwise pids are the rank of the sorted names
    and the names stand in the column `name`.
    """
    if root is None:
        raise ValueError(f"{name}: expected root, the folder (or CSV file) that holds the images, got none")
    at = Path(root).expanduser()
    table = at if at.suffix.lower() == ".csv" else at / "index.csv"
    if table.is_file():
        listed = _csv_rows(name, table)
        base = table.parent
        pids, numeric = number_names([r[1] for r in listed])
        which = np.array([SPLITS.index(r[3]) for r in listed], np.int64)
        whole = _table(base, [r[:3] for r in listed], pids, numeric)
    elif table == at:
        raise FileNotFoundError(f"{name}: no such file: {at}")
    else:
        base = data_root(name, at)
        present = [s for s in SPLITS if (base / s).is_dir()]
        rows = (
            [(s, r) for s in present for r in _tree_rows(name, base, s)]
            if present
            else [("train", r) for r in _tree_rows(name, base, "")]
        )
        if not rows:
            raise FileNotFoundError(f"{name}: found no <person>/<camera>_*.jpg in {base}")
        pids, numeric = number_names([r[1] for _, r in rows])
        which = np.array([SPLITS.index(s) for s, _ in rows], np.int64)
        whole = _table(base, [r for _, r in rows], pids, numeric)
    if test is not None:
        if (which != 0).any():
            raise ValueError(f"{name}: expected test=None where {base} has its own query or gallery, got {test}")
        data = split_identities(whole, test=test, queries=queries, seed=seed, name=name)
    else:
        data = ReidData(name, whole.select(which == 0), whole.select(which == 1), whole.select(which == 2))
    require_files(name, whole)
    return data
