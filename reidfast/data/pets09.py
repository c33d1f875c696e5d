# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""PETS 2009 S2.L1, view 1, as a small person-search set: train in the first part of the video, search in the rest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from reidfast.data.registry import Root, cache_folder, find_folder
from reidfast.data.search import Floats, Scenes, SearchData, draw_queries, search_reader
from reidfast.data.synthetic.sets import _write_atomically

FRAMES = 795


def decode_frames(name: str, video: Path, folder: Path, frames: list[int]) -> None:
    """Writes the frames (from 1) that are not there yet as `000001.jpg`; each file appears whole."""
    absent = {f for f in frames if not (folder / f"{f:06d}.jpg").is_file()}
    if not absent:
        return
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            f"{name}: OpenCV is missing, which decodes the video once; pip install opencv-python-headless"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    capture = cv2.VideoCapture(str(video))
    if not capture.isOpened():
        raise ValueError(f"{name}: expected a video that OpenCV can read, got {video}")
    try:
        for number in range(1, max(absent) + 1):
            if not capture.grab():
                raise ValueError(f"{name}: expected at least {max(absent)} frames in {video}, got {number - 1}")
            if number in absent:
                ok, frame = capture.retrieve()
                if not ok:
                    raise ValueError(f"{name}: frame {number} of {video} cannot be decoded")
                jpeg = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
                _write_atomically(folder / f"{number:06d}.jpg", jpeg.tobytes())
    finally:
        capture.release()


def read_mot(name: str, path: Path) -> dict[int, tuple[list[int], Floats, Floats]]:
    """MOT lines `frame, id, x, y, w, h, score, ...` -> frame: (ids, boxes (n, 4) as corners, scores)."""
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no such file: {path}")
    table = np.loadtxt(path, delimiter=",", ndmin=2)
    if table.shape[1] < 7:
        raise ValueError(f"{name}: expected lines 'frame, id, x, y, w, h, score, ...' in {path}")
    out = {}
    for frame in np.unique(table[:, 0]).astype(int):
        t = table[table[:, 0] == frame]
        out[int(frame)] = (t[:, 1].astype(int).tolist(), np.concatenate([t[:, 2:4], t[:, 2:4] + t[:, 4:6]], 1), t[:, 6])
    return out


@search_reader("pets09_s2l1")
def pets09_s2l1(
    name: str,
    root: Root | None = None,
    *,
    every: int = 5,
    train_until: int = 380,
    search_from: int = 420,
    queries: int = 4,
    apart: int = 70,
    seed: int = 0,
) -> SearchData:
    """PETS 2009 S2.L1 view 1: `vtest.avi`, `gt/gt.txt`, `det/det.txt`, `person_groups_by_eye.json`.

    19 tracks, grouped by eye into ten persons. One camera, so a search may only look in frames that are far from the
    query's. Most persons appear in both parts: it shows search, not generalisation to new people.

    Args:
        name: The name asked for.
        root: Folder of data sets.
        every: Frame of the video that is taken, one in so many (it has 7 a second).
        train_until: Last frame to train on.
        search_from: First frame to search in.
        queries: Number of queries of each person.
        apart: Frames between a query and what is searched for it (70: ten seconds).
        seed: Seed of the draw of queries.
    """
    folder = find_folder(name, root, ["pets09_s2l1", "PETS09-S2L1"], ["vtest.avi", "gt/gt.txt"])
    if not 1 <= train_until < search_from <= FRAMES or every < 1 or queries < 1 or apart < 1:
        raise ValueError(
            f"{name}: expected 1 <= train_until < search_from <= {FRAMES} and every, queries, apart >= 1, got "
            f"{train_until}, {search_from}, {every}, {queries}, {apart}"
        )
    groups = json.loads((folder / "person_groups_by_eye.json").read_text(encoding="utf-8"))["groups"]
    person = {int(track): int(pid) for pid, tracks in groups.items() for track in tracks}
    truth, detected = read_mot(name, folder / "gt" / "gt.txt"), read_mot(name, folder / "det" / "det.txt")
    parts = {
        "train": list(range(1, train_until + 1, every)),
        "gallery": list(range(search_from, FRAMES + 1, every)),
    }
    frames = cache_folder() / "pets09_s2l1"
    decode_frames(name, folder / "vtest.avi", frames, parts["train"] + parts["gallery"])
    nothing: tuple[list[int], Floats, Floats] = ([], np.empty((0, 4)), np.empty(0))
    scenes = {}
    for part, listed in parts.items():
        rows, found = [], []
        for frame in listed:
            tracks, boxes, _ = truth.get(frame, nothing)
            rows.append((f"{frame:06d}.jpg", 1, boxes, [person.get(t, -1) for t in tracks]))
            found.append(detected.get(frame, nothing)[1:])
        scenes[part] = Scenes.build(frames, rows, detected=found, frames=listed)
    chosen, lists = draw_queries(scenes["gallery"], per_person=queries, seed=seed, apart=apart)
    return SearchData(
        name,
        scenes["train"],
        scenes["gallery"],
        chosen,
        {"apart": lists},
        "apart",
        info={"split": f"train frames 1-{train_until}, searched {search_from}-{FRAMES}, every {every}th"},
    )
