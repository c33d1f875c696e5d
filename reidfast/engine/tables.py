# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Results in tables: of every pair of cameras, and of runs that differ by their seed only."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reidfast.evaluation import rank

__all__ = ["CameraPairs", "RunRow", "camera_pairs", "runs_table"]


class CameraPairs(NamedTuple):
    """Scores with the queries of one camera (rows) and the gallery of another (columns).

    Attributes:
        query_cameras: Camera of each row.
        gallery_cameras: Camera of each column.
        rank1: (rows, columns), NaN where no query has a match.
        mean_ap: Likewise.
        queries: How many queries have a match.
    """

    query_cameras: list[int]
    gallery_cameras: list[int]
    rank1: NDArray[np.float64]
    mean_ap: NDArray[np.float64]
    queries: NDArray[np.int64]


def camera_pairs(
    query: Any,
    gallery: Any,
    query_pids: ArrayLike,
    gallery_pids: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    *,
    camera_rule: bool = True,
    **options: Any,
) -> CameraPairs:
    """`reidfast.evaluation.rank` for the queries of each camera against the gallery of each camera.

    A gallery of one camera is smaller than all of it, so these scores are not parts of a mean: they say between which
    views people are found.

    Args:
        query: Features, as in `rank`.
        gallery: Likewise.
        query_pids: Identities of the queries.
        gallery_pids: Likewise.
        query_cameras: Cameras; they must be given here.
        gallery_cameras: Likewise.
        camera_rule: With the rule, a camera against itself has no match: NaN.
        options: Further options of `rank` (metric, protocol, ...).
    """
    pids, others = np.asarray(query_pids), np.asarray(gallery_pids)
    cams, views = np.asarray(query_cameras), np.asarray(gallery_cameras)
    rows, columns = np.unique(cams).tolist(), np.unique(views).tolist()
    shape = (len(rows), len(columns))
    first, mean, count = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, np.int64)
    for i, a in enumerate(rows):
        asked = np.flatnonzero(cams == a)
        for j, b in enumerate(columns):
            shown = np.flatnonzero(views == b)
            if (camera_rule and a == b) or not np.isin(pids[asked], others[shown]).any():
                continue
            given = (cams[asked], views[shown]) if camera_rule else (None, None)
            found = rank(query[asked], gallery[shown], pids[asked], others[shown], *given, **options)
            first[i, j], mean[i, j], count[i, j] = found.cmc[0], found.mean_ap, int(found.valid.sum())
    return CameraPairs(rows, columns, first, mean, count)


class RunRow(NamedTuple):
    """Runs that differ by seed and folder only.

    Attributes:
        name: What sets them apart from the other rows, as dotted settings; the folder where there is one row.
        runs: Their folders.
        seeds: Their seeds.
        epochs: Epoch of the scores.
        scores: By name: mean, standard deviation over the seeds (with n - 1; NaN of one run), smallest and largest.
    """

    name: str
    runs: list[str]
    seeds: list[int]
    epochs: list[int]
    scores: dict[str, dict[str, float]]


def runs_table(folders: Iterable[str | os.PathLike[str]], *, which: str = "last") -> list[RunRow]:
    """Mean and spread over seeds of the scores that runs left in metrics.json.

    Args:
        folders: Folders of runs.
        which: "last" evaluated epoch, "best" (by mAP; an optimistic choice) or "before" training.

    Raises:
        ValueError: A folder without metrics.json, or runs without scores.
    """
    if which not in ("last", "best", "before"):
        raise ValueError(f"table: expected last, best or before, got {which!r}")
    runs = [_read(Path(folder), which) for folder in folders]
    if not runs:
        raise ValueError("table: expected at least one folder of a run, got none")
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run["settings"], sort_keys=True), []).append(run)
    differing = _differing([group[0]["settings"] for group in groups.values()])
    rows = []
    for group in groups.values():
        said = [f"{key}={json.dumps(group[0]['settings'].get(key))}" for key in differing]
        names = list(dict.fromkeys(name for run in group for name in run["scores"]))
        scores = {n: _spread([run["scores"][n] for run in group if n in run["scores"]]) for n in names}
        rows.append(
            RunRow(
                ", ".join(said) or group[0]["folder"],
                [run["folder"] for run in group],
                [run["seed"] for run in group],
                [run["epoch"] for run in group],
                scores,
            )
        )
    return rows


def _read(folder: Path, which: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        history, before, config = content["history"], content.get("before"), dict(content["config"])
    except FileNotFoundError:
        raise ValueError(f"table: no metrics.json in {folder}; expected the folder of a finished run") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"table: {folder / 'metrics.json'} is not that of a run ({error})") from None
    if which == "before":
        found = {"epoch": 0, **before} if before else None
    elif which == "best":
        found = max(history, key=lambda row: row.get("mAP", -math.inf), default=None)
    else:
        found = history[-1] if history else None
    if not found:
        raise ValueError(f"table: {folder} was never evaluated{' before training' if which == 'before' else ''}")
    seed = config.pop("seed", 0)
    for name in ("out", "resume", "devices", "accelerator"):
        config.pop(name, None)
    scores = {name: float(value) for name, value in found.items() if name != "epoch"}
    return {
        "folder": str(folder),
        "seed": seed,
        "epoch": int(found["epoch"]),
        "scores": scores,
        "settings": _flat(config),
    }


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if len({json.dumps(each.get(key), sort_keys=True) for each in settings}) > 1]


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = np.asarray(values, np.float64)
    deviation = float(found.std(ddof=1)) if len(found) > 1 else math.nan
    return {
        "mean": float(found.mean()),
        "std": deviation,
        "min": float(found.min()),
        "max": float(found.max()),
        "n": len(found),
    }
