# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Synthetic walks as a data set of tracklets on disk, every frame's quality known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reidfast.data.records import Records, ReidData
from reidfast.data.registry import Root, cache_folder, missing_files, reader
from reidfast.data.synthetic.sets import _read_marker, _write_atomically
from reidfast.data.synthetic.tracks import EVENTS, Track
from reidfast.data.synthetic.world import World

VERSION = 1  # raise it whenever a picture changes
MARKER, STARTED = "synthetic_tracklets.json", "synthetic_tracklets.started.json"
Key = tuple[int, int, int]  # pid, camid, number
TRUTH = ("quality", "visible", "overlap", "sharpness")


@dataclass(frozen=True)
class SyntheticTracklets:
    """What decides the content of a folder of synthetic tracklets, to the byte.

    Args:
        ids: Identities, numbered from 1. The first `round((1 - test) * ids)` are for training.
        cameras: Cameras, numbered from 1; every camera sees every identity.
        tracks: Walks of each identity before each camera.
        frames: Frames of each walk.
        seed: See `World`.
        difficulty: See `World`.
        trouble: Share of the frames, on average, in which something goes wrong; see `Track`.
        events: What may go wrong; see `Track`.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        test: Share of the identities that are for testing.
        version: Version of the renderer.
    """

    ids: int = 60
    cameras: int = 2
    tracks: int = 1
    frames: int = 16
    seed: int = 0
    difficulty: float = 0.4
    trouble: float = 0.4
    events: tuple[str, ...] = EVENTS
    height: int = 128
    width: int = 64
    test: float = 0.5
    version: int = VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", tuple(self.events))
        for name in ("ids", "cameras", "tracks", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"synthetic_tracklets: expected {name} of at least 1, got {getattr(self, name)}")
        if not 0 <= self.test <= 1:
            raise ValueError(f"synthetic_tracklets: expected test in [0, 1], got {self.test}")
        if self.version != VERSION:
            raise ValueError(f"synthetic_tracklets: expected version {VERSION} of the renderer, got {self.version}")
        _ = self.track(1, 1)  # checks the rest

    @property
    def world(self) -> World:
        """Where these people live."""
        return World(self.seed, self.difficulty, self.height, self.width)

    def track(self, pid: int, camid: int, number: int = 0) -> Track:
        """A walk: `.frame(i)` is the picture behind a row, with its mask, its quality and the clean render."""
        return Track(self.world, int(pid), int(camid), int(number), self.frames, self.trouble, self.events)

    def keys(self) -> list[Key]:
        """Every tracklet: pid, camera, number."""
        walks = [(camid, k) for camid in range(1, self.cameras + 1) for k in range(self.tracks)]
        return [(pid, camid, k) for pid in range(1, self.ids + 1) for camid, k in walks]

    def path(self, key: Key, frame: int) -> str:
        """Where a frame lies in the folder; named as in MARS."""
        pid, camid, number = key
        return f"frames/{pid:04d}/{pid:04d}C{camid}T{number + 1:04d}F{frame + 1:03d}.jpg"


def _truth_path(folder: Path, key: Key) -> Path:
    return folder / f"frames/{key[0]:04d}/{key[0]:04d}C{key[1]}T{key[2] + 1:04d}.json"


def _render_walk(task: tuple[SyntheticTracklets, Path, Key]) -> int:
    spec, folder, key = task
    track, rows = spec.track(*key), []
    _truth_path(folder, key).parent.mkdir(parents=True, exist_ok=True)
    for i in range(len(track)):
        frame = track.frame(i)
        _write_atomically(folder / spec.path(key, i), frame.photograph.jpeg)
        seen = [None if v != v else round(float(v), 4) for v in frame.photograph.visibility]
        rows.append([frame.event, *(round(getattr(frame, name), 4) for name in TRUTH), *seen])
    _write_atomically(_truth_path(folder, key), json.dumps(rows).encode())
    return len(rows)


def write_synthetic_tracklets(
    folder: Root,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    **parameters: Any,
) -> ReidData:
    """Writes synthetic walks and reads them back.

    A walk is done when its table of truths is there, written after its frames; `synthetic_tracklets.json` comes last.
    Calling again with the same parameters goes on where an interrupted call stopped.

    Args:
        folder: Where to write; made if need be.
        workers: Processes that render.
        progress: Called with (frames done, frames) now and then.
        **parameters: See `SyntheticTracklets`.

    Raises:
        FileExistsError: The folder holds other data, or tracklets with other parameters.
        ValueError: A parameter is out of range.
    """
    spec = _spec(parameters)
    folder = Path(folder).expanduser()
    wanted = json.loads(json.dumps(asdict(spec)))
    done, started = _read_marker(folder / MARKER), _read_marker(folder / STARTED)
    if (done or started) not in (None, wanted):
        have = done or started or {}
        other = ", ".join(f"{k}={have.get(k)!r}, not {v!r}" for k, v in wanted.items() if have.get(k) != v)
        raise FileExistsError(f"synthetic_tracklets: {folder} holds others ({other}); choose another folder")
    if not done and not started and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"synthetic_tracklets: {folder} is not empty and not made here; choose another folder")
    keys = spec.keys()
    todo = [k for k in keys if not _whole(folder, spec, k)]
    if todo or not done:
        folder.mkdir(parents=True, exist_ok=True)
        _write_atomically(folder / STARTED, json.dumps(wanted).encode())
        finished, total = (len(keys) - len(todo)) * spec.frames, len(keys) * spec.frames
        for count in _run([(spec, folder, key) for key in todo], workers):
            finished += count
            if progress:
                progress(finished, total)
        _write_atomically(folder / MARKER, json.dumps(wanted).encode())
        (folder / STARTED).unlink(missing_ok=True)
    return _read(folder, spec)


def _whole(folder: Path, spec: SyntheticTracklets, key: Key) -> bool:
    zeros = np.zeros(spec.frames, np.int64)
    paths = tuple(spec.path(key, i) for i in range(spec.frames))
    return _truth_path(folder, key).is_file() and not missing_files(Records(folder, paths, zeros, zeros))


def _run(tasks: list[tuple[SyntheticTracklets, Path, Key]], workers: int) -> Any:
    if workers <= 1 or len(tasks) < 2:
        yield from map(_render_walk, tasks)
        return
    import multiprocessing

    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with multiprocessing.get_context(method).Pool(min(workers, len(tasks))) as pool:
        yield from pool.imap_unordered(_render_walk, tasks)


def _spec(parameters: dict[str, Any]) -> SyntheticTracklets:
    unknown = sorted(set(parameters) - set(SyntheticTracklets.__dataclass_fields__))
    if unknown:
        known = ", ".join(f for f in SyntheticTracklets.__dataclass_fields__ if f != "version")
        raise ValueError(f"synthetic_tracklets: expected parameters among {known}, got {', '.join(unknown)}")
    return SyntheticTracklets(**parameters)


def _table(folder: Path, spec: SyntheticTracklets, keys: Sequence[tuple[int, Key]]) -> Records:
    if not keys:
        return Records.empty(folder)
    paths: list[str] = []
    numbers: list[tuple[int, int, int, int]] = []
    truth: list[list[Any]] = []
    for tracklet, key in keys:
        truth += json.loads(_truth_path(folder, key).read_text(encoding="utf-8"))
        for i in range(spec.frames):
            paths.append(spec.path(key, i))
            numbers.append((key[0], key[1], tracklet, i))
    table = np.array(numbers, np.int64)
    values = np.array([[np.nan if v is None else v for v in row[1:]] for row in truth], np.float32)
    extra: dict[str, Any] = {"tracklet": table[:, 2], "frame": table[:, 3], "event": np.array([r[0] for r in truth])}
    extra |= {name: values[:, k] for k, name in enumerate(TRUTH)}
    extra["visibility"] = values[:, len(TRUTH) :]
    return Records(folder, tuple(paths), table[:, 0], table[:, 1], extra)


def _read(folder: Path, spec: SyntheticTracklets) -> ReidData:
    listed = list(enumerate(spec.keys()))
    training = round((1 - spec.test) * spec.ids)
    train = [(t, k) for t, k in listed if k[0] <= training]
    test = [(t, k) for t, k in listed if k[0] > training]
    query = [(t, k) for t, k in test if k[2] == 0]
    tables = (_table(folder, spec, train), _table(folder, spec, query), _table(folder, spec, test))
    return ReidData("synthetic_tracklets", *tables, info={"synthetic_tracklets": spec, "query_in_gallery": True})


@reader("synthetic_tracklets")
def synthetic_tracklets(
    name: str, root: Root | None = None, *, workers: int = 1, progress: Any = None, **parameters: Any
) -> ReidData:
    """Rendered walks; made when they are asked for first.

    The tables have the columns `tracklet`, `frame`, `event` (of `EVENTS`, or "none"), `quality`, `visible`, `overlap`,
    `sharpness` (`TrackFrame`) and `visibility` [n, parts]. As in MARS the gallery holds the query tracklets too: the
    first walk of each test identity before each camera.

    Args:
        name: The name asked for.
        root: The folder; a finished one is read as it is where no parameters are given. Default: one for these
            parameters under `cache_folder()`.
        workers: See `write_synthetic_tracklets`.
        progress: Likewise.
        **parameters: See `SyntheticTracklets`; `info["synthetic_tracklets"]` of the result holds them.
    """
    if root is None:
        spec = _spec(parameters)
        values = asdict(spec) | {"events": "+".join(spec.events) if spec.events != EVENTS else "all"}
        leaf = "-".join(f"{k}{v:g}" if not isinstance(v, str) else v for k, v in values.items())
        folder = cache_folder() / "synthetic_tracklets" / leaf
    else:
        folder = Path(root).expanduser()
        made = _read_marker(folder / MARKER)
        if made and not parameters:
            parameters = made
    return write_synthetic_tracklets(folder, workers=workers, progress=progress, **parameters)
