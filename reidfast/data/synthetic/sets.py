# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Synthetic people as a data set in Market-1501's folders, and as a contact sheet."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reidfast.data.market1501 import read_folders
from reidfast.data.records import Records, ReidData
from reidfast.data.registry import Root, cache_folder, missing_files, reader
from reidfast.data.synthetic.world import Photograph, World

VERSION = 1  # raise it whenever a picture changes: cached folders are then made anew
MARKER, STARTED = "synthetic.json", "synthetic.started.json"
FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


@dataclass(frozen=True)
class SyntheticSet:
    """What decides the content of a synthetic folder, to the byte.

    Args:
        ids: Identities, numbered from 1. The first `round((1 - test) * ids)` are for training.
        cameras: Cameras, numbered from 1; every camera sees every identity.
        images: Pictures of each identity by each camera; of a test identity, the first is a query.
        seed: See `World`.
        difficulty: See `World`.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        test: Share of the identities that are for testing.
        distractors: Gallery pictures of people who are nobody else in the set (pid 0).
        version: Version of the renderer.
    """

    ids: int = 200
    cameras: int = 6
    images: int = 4
    seed: int = 0
    difficulty: float = 0.5
    height: int = 128
    width: int = 64
    test: float = 0.5
    distractors: int = 0
    version: int = VERSION

    def __post_init__(self) -> None:
        for name, least in (("ids", 1), ("cameras", 1), ("images", 1), ("distractors", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"synthetic: expected {name} of at least {least}, got {getattr(self, name)}")
        if not 0 <= self.test <= 1:
            raise ValueError(f"synthetic: expected test in [0, 1], got {self.test}")
        if self.test > 0 and self.images < 2:
            raise ValueError(f"synthetic: expected images >= 2 (a query and a gallery picture), got {self.images}")
        if self.version != VERSION:
            raise ValueError(f"synthetic: expected version {VERSION} of the renderer, got {self.version}")
        _ = self.world  # checks the rest

    @property
    def world(self) -> World:
        """Where these people live."""
        return World(self.seed, self.difficulty, self.height, self.width)

    def files(self) -> list[tuple[str, int, int, int]]:
        """Every picture: path in the folder, and the arguments of `World.render`."""
        training = round((1 - self.test) * self.ids)
        listed = []
        for pid in range(1, self.ids + 1):
            for camid in range(1, self.cameras + 1):
                for index in range(self.images):
                    split = "train" if pid <= training else ("query" if index == 0 else "gallery")
                    name = f"{pid:04d}_c{camid}s1_{index:06d}_00.jpg"
                    listed.append((f"{FOLDERS[split]}/{name}", pid, camid, index))
        for k in range(self.distractors):
            camid = k % self.cameras + 1
            name = f"0000_c{camid}s1_{k:06d}_00.jpg"
            listed.append((f"{FOLDERS['gallery']}/{name}", self.ids + 1 + k, camid, k))
        return listed

    def photograph(self, pid: int, camid: int, frame: int) -> Photograph:
        """The picture behind a row (pid, camid, `frame`) of a table, with its mask, parts and visibility."""
        if pid == 0:
            pid = self.ids + 1 + frame
        return self.world.render(pid, camid, frame)


def _write_atomically(path: Path, content: bytes) -> None:
    """The file is there whole or not at all, whatever happens in between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read_marker(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _render_files(spec: SyntheticSet, folder: Path, files: Sequence[tuple[str, int, int, int]]) -> int:
    """Renders and writes; the order does not matter."""
    world = spec.world
    for path, pid, camid, index in files:
        _write_atomically(folder / path, world.render(pid, camid, index).jpeg)
    return len(files)


def _render_task(task: tuple[SyntheticSet, Path, Sequence[tuple[str, int, int, int]]]) -> int:
    return _render_files(*task)


def write_synthetic(
    folder: Root,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **parameters: Any,
) -> ReidData:
    """Writes synthetic people into Market-1501's folders and reads them back.

    Each file appears whole (temporary name, then rename), and `synthetic.json`, which holds the parameters, last: a
    folder without it is unfinished. Calling again with the same parameters goes on where an interrupted call stopped,
    and costs one look at the file names where all is there.

    Args:
        folder: Where to write; made if need be.
        workers: Processes that render.
        overwrite: Replace synthetic people of other parameters. Files of any other origin are never touched.
        progress: Called with (done, total) now and then.
        **parameters: See `SyntheticSet`.

    Raises:
        FileExistsError: The folder holds other data, or synthetic people with other parameters.
        ValueError: A parameter is out of range.
    """
    spec = _spec(parameters)
    folder = Path(folder).expanduser()
    wanted = asdict(spec)
    files = spec.files()
    done, started = _read_marker(folder / MARKER), _read_marker(folder / STARTED)
    if (done or started) not in (None, wanted):
        if not overwrite:
            other = _differences(done or started, wanted)
            raise FileExistsError(
                f"synthetic: {folder} holds people of other parameters ({other}); choose another folder or overwrite"
            )
        _remove_synthetic(folder, done or started)
    elif not done and not started and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"synthetic: {folder} is not empty and not made here; choose another folder")
    elif done == wanted and not missing_files(_listing(folder, files)):
        return _read(folder, spec)
    for leaf in FOLDERS.values():
        (folder / leaf).mkdir(parents=True, exist_ok=True)
    _write_atomically(folder / STARTED, json.dumps(wanted).encode())
    (folder / MARKER).unlink(missing_ok=True)
    absent = set(missing_files(_listing(folder, files)))
    tasks = [f for f in files if f[0] in absent]
    finished = len(files) - len(tasks)
    if progress:
        progress(finished, len(files))
    step = max(1, spec.images * spec.cameras)  # one identity at a time: its textures are made once
    pieces = [(spec, folder, tasks[i : i + step]) for i in range(0, len(tasks), step)]
    for count in _run(pieces, workers):
        finished += count
        if progress:
            progress(finished, len(files))
    for leaf in FOLDERS.values():
        for rest in (folder / leaf).glob(".*.tmp"):  # of a killed process
            rest.unlink(missing_ok=True)
    _write_atomically(folder / MARKER, json.dumps(wanted).encode())
    (folder / STARTED).unlink(missing_ok=True)
    return _read(folder, spec)


def _spec(parameters: dict[str, Any]) -> SyntheticSet:
    unknown = sorted(set(parameters) - set(SyntheticSet.__dataclass_fields__))
    if unknown:
        known = ", ".join(f for f in SyntheticSet.__dataclass_fields__ if f != "version")
        raise ValueError(f"synthetic: expected parameters among {known}, got {', '.join(unknown)}")
    return SyntheticSet(**parameters)


def _differences(have: dict[str, Any] | None, wanted: dict[str, Any]) -> str:
    have = have or {}
    return ", ".join(f"{k}={have.get(k)!r}, not {v!r}" for k, v in wanted.items() if have.get(k) != v) or "unknown ones"


def _listing(folder: Path, files: Sequence[tuple[str, int, int, int]]) -> Records:
    zeros = np.zeros(len(files), np.int64)
    return Records(folder, tuple(f[0] for f in files), zeros, zeros)


def _remove_synthetic(folder: Path, made: dict[str, Any] | None) -> None:
    """Deletes exactly the names such a set may have, nothing else."""
    (folder / MARKER).unlink(missing_ok=True)
    for leaf in FOLDERS.values():
        for path in (folder / leaf).glob("[0-9][0-9][0-9][0-9]*_c*s1_[0-9][0-9][0-9][0-9][0-9][0-9]_00.jpg"):
            path.unlink()


def _run(pieces: list[tuple[SyntheticSet, Path, list[tuple[str, int, int, int]]]], workers: int) -> Iterable[int]:
    if workers <= 1 or len(pieces) < 2:
        yield from map(_render_task, pieces)
        return
    import multiprocessing

    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with multiprocessing.get_context(method).Pool(min(workers, len(pieces))) as pool:
        yield from pool.imap_unordered(_render_task, pieces)


def _read(folder: Path, spec: SyntheticSet) -> ReidData:
    data, _ = read_folders("synthetic", folder, distractor=0 if spec.distractors else None)
    return ReidData("synthetic", data.train, data.query, data.gallery, data.distractor, info={"synthetic": spec})


@reader("synthetic")
def synthetic(
    name: str, root: Root | None = None, *, workers: int = 1, progress: Any = None, **parameters: Any
) -> ReidData:
    """Rendered people; made when they are asked for first.

    Args:
        name: The name asked for.
        root: The folder; a finished one is read as it is where no parameters are given. Default: one for these
            parameters under `cache_folder()`.
        workers: See `write_synthetic`.
        progress: See `write_synthetic`.
        **parameters: See `SyntheticSet`; `info["synthetic"]` of the result holds them.
    """
    if root is None:
        spec = _spec(parameters)
        values = "-".join(f"{k}{v:g}" for k, v in asdict(spec).items())
        folder = cache_folder() / "synthetic" / values
    else:
        folder = Path(root).expanduser()
        made = _read_marker(folder / MARKER)
        if made and not parameters:
            parameters = made
    return write_synthetic(folder, workers=workers, progress=progress, **parameters)


def contact_sheet(
    world: World,
    *,
    pids: Iterable[int] = range(1, 9),
    camids: Iterable[int] = range(1, 7),
    images: int = 2,
    gap: int = 6,
    images_of: Callable[[World, int, int, int], np.ndarray] | None = None,
) -> Image.Image:
    """A picture of pictures: a row an identity, a group of columns a camera.

    Args:
        world: Where they live.
        pids: The rows.
        camids: The groups of columns.
        images: Pictures in each group.
        gap: Pixels between groups and rows.
        images_of: What to show for (world, pid, camid, index), uint8 [H,W,3]; default: the photograph.
    """
    pids, camids = list(pids), list(camids)
    if not pids or not camids or images < 1:
        raise ValueError(f"contact_sheet: expected pids, camids and images, got {len(pids)}, {len(camids)}, {images}")
    show = images_of or (lambda w, pid, camid, index: w.render(pid, camid, index).image)
    h, w = world.height, world.width
    sheet = Image.new("RGB", (gap + len(camids) * (images * w + gap), gap + len(pids) * (h + gap)), (255, 255, 255))
    for row, pid in enumerate(pids):
        for column, camid in enumerate(camids):
            for index in range(images):
                left = gap + column * (images * w + gap) + index * w
                sheet.paste(Image.fromarray(show(world, pid, camid, index)), (left, gap + row * (h + gap)))
    return sheet
