# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The gallery as a query sees it: the nearest rows, and which of them are right."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reidfast.engine.features import FeatureFile
from reidfast.evaluation import search

__all__ = ["RankedList", "choose_queries", "image_roots", "rank_queries"]


class RankedList(NamedTuple):
    """One query and what was found for it.

    Attributes:
        query: Row of the query split.
        rows: Rows of the gallery, nearest first; fewer than asked for where the gallery has no more that count.
        distances: Distances of those rows.
        matches: Whether each has the query's identity.
    """

    query: int
    rows: NDArray[np.int64]
    distances: NDArray[Any]
    matches: NDArray[np.bool_]


def rank_queries(
    file: FeatureFile, queries: Sequence[int], k: int = 10, *, metric: str = "cosine", camera_rule: bool = True
) -> list[RankedList]:
    """The k nearest gallery rows that count for each of some queries.

    Junk (identity -1) never counts; with the camera rule, neither do images of the query's own identity and camera: the
    same rows as in `reidfast.evaluation.rank`.

    Args:
        file: With query and gallery.
        queries: Rows of the query split.
        k: Length of the lists.
        metric: As in `reidfast.evaluation.rank`.
        camera_rule: See above.
    """
    query, gallery = file.query, file.gallery
    if not len(gallery):
        raise ValueError("rank_queries: expected a gallery with at least one row, got an empty one")
    junk = gallery.pids == -1
    rows = np.asarray(queries, np.int64)
    left_out = []
    for i in rows:
        out = junk
        if camera_rule:
            out = junk | ((gallery.pids == query.pids[i]) & (gallery.camids == query.camids[i]))
        left_out.append(np.flatnonzero(out).astype(np.int64))
    lists = []
    for i, out in zip(rows, left_out, strict=True):
        usable = min(k, len(gallery) - len(out))
        if usable == 0:
            lists.append(RankedList(int(i), np.empty(0, np.int64), np.empty(0), np.empty(0, bool)))
            continue
        distances, found = search(query.features[i : i + 1], gallery.features, usable, metric=metric, exclude=[out])
        index = np.asarray(found)[0]
        lists.append(RankedList(int(i), index, np.asarray(distances)[0], gallery.pids[index] == query.pids[i]))
    return lists


def choose_queries(ap: Sequence[float | None], count: int, order: str, seed: int = 0) -> list[int]:
    """Rows of the queries to show: the worst or best by average precision, the first, or a seeded draw."""
    valid = [i for i, value in enumerate(ap) if value is not None]
    if order == "random":
        rng = np.random.default_rng(seed)
        return sorted(rng.permutation(valid)[:count].tolist())
    if order in ("worst", "best"):
        sign = 1 if order == "worst" else -1
        valid.sort(key=lambda i: (sign * float(ap[i] or 0.0), i))
    return valid[:count]


def image_roots(file: FeatureFile, root: str | os.PathLike[str] | None = None) -> Mapping[str, Path]:
    """The folder of the images of each split: `root` for all, else what the file says.

    Raises:
        ValueError: The file names no images, or no folder of them.
        FileNotFoundError: The folder, or the first image in it, is not there.
    """
    known = file.meta.get("roots", {})
    roots = {}
    for name in ("query", "gallery"):
        table = file[name]
        if not table.paths and len(table):
            raise ValueError("report: expected a feature file with the paths of the images; this one has none")
        if root is None and name not in known:
            raise ValueError("report: the feature file does not say where its images are; give --root")
        roots[name] = Path(root if root is not None else known[name])
        if len(table) and not (roots[name] / table.paths[0]).is_file():
            raise FileNotFoundError(f"report: no image {roots[name] / table.paths[0]}; give their folder as --root")
    return roots
