# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Video data sets, and still-image sets read as sets of images: tables of frames with the columns `tracklet`, `frame`.

`Tracklets.of(data.train)` puts the frames together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reidfast.data.cuhk03 import cuhk03_np
from reidfast.data.records import Ints, Records, ReidData, concatenate
from reidfast.data.registry import Root, checked, find_folder, list_images, reader, require_files
from reidfast.data.splits import named_split
from reidfast.data.tracklets import Tracklets

MARS_PUBLISHED: Mapping[str, Mapping[str, int]] = {
    "train": {"images": 509914, "tracklets": 8298, "ids": 625, "cameras": 6},
    "query": {"tracklets": 1980, "ids": 626, "cameras": 6},
    "gallery": {
        "images": 681089,
        "tracklets": 12180,
        "cameras": 6,
        "junk_tracklets": 870,
        "distractor_tracklets": 3248,
    },
}
ILIDS_PUBLISHED: Mapping[str, Mapping[str, int]] = {
    "train": {"tracklets": 300, "ids": 150, "cameras": 2},
    "query": {"tracklets": 150, "ids": 150, "cameras": 1},
    "gallery": {"tracklets": 150, "ids": 150, "cameras": 1},
}
PRID_PUBLISHED: Mapping[str, Mapping[str, int]] = {
    "train": {"tracklets": 178, "ids": 89, "cameras": 2},
    "query": {"tracklets": 89, "ids": 89, "cameras": 1},
    "gallery": {"tracklets": 89, "ids": 89, "cameras": 1},
}
CUHK03_PUBLISHED: Mapping[str, Mapping[str, int]] = {
    "train": {"images": 7365, "tracklets": 1534, "ids": 767, "cameras": 2},
    "query": {"tracklets": 700, "ids": 700, "cameras": 1},
    "gallery": {"tracklets": 700, "ids": 700, "cameras": 1},
}


def _mat(name: str, path: Path, key: str, width: int | None = None) -> Ints:
    """The integer matrix `key` of a .mat file; ValueError or FileNotFoundError that names the file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise FileNotFoundError(f"{name}: found no {path.name} in {path.parent}")
    try:
        table = loadmat(str(path))[key].astype(np.int64)
    except (KeyError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        raise ValueError(f"{name}: expected the matrix {key} in {path}, got {error!r}") from None
    if table.ndim != 2 or (width is not None and table.shape[1] != width):
        raise ValueError(f"{name}: expected {key} of {width or 'n'} columns in {path}, got shape {table.shape}")
    return table


def _lines(name: str, path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{name}: found no {path.name} in {path.parent}")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _mars_table(name: str, root: Path, folder: str, names: list[str], tracks: Ints, at: Path) -> Records:
    """Frames of all tracks (rows start, end, pid, camera; 1-based, both ends inside), track by track."""
    start, stop = tracks[:, 0] - 1, tracks[:, 1]
    if len(tracks) and (start.min() < 0 or stop.max() > len(names) or (stop <= start).any()):
        raise ValueError(f"{name}: expected tracks within the {len(names):,} names in {at}, got some outside")
    lengths = stop - start
    index = np.repeat(np.arange(len(tracks)), lengths)
    rows = np.arange(len(index)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(start, lengths)
    leaves = [names[i] for i in rows]
    try:
        frames = [int(leaf[leaf.rindex("F") + 1 : leaf.rindex(".")]) for leaf in leaves]
    except ValueError:
        raise ValueError(f"{name}: expected names like 0001C1T0001F001.jpg in {at}") from None
    paths = tuple(f"{folder}/{leaf[:4]}/{leaf}" for leaf in leaves)
    columns = {"tracklet": index, "frame": np.array(frames, np.int64)}
    return Records(root, paths, tracks[index, 2], tracks[index, 3], columns)


@reader("mars")
def mars(name: str, root: Root | None = None, *, gallery: str = "official") -> ReidData:
    """MARS: `bbox_train`, `bbox_test` and the official `info` folder (Zheng et al., ECCV 2016).

    Args:
        name: The name asked for.
        root: See `load_dataset`.
        gallery: `official`: all test tracklets, queries among them (protocol "mars"). `torchreid`: without the query
            tracklets and junk (protocol "mars_torchreid"); scores of the two do not compare.
    """
    if gallery not in ("official", "torchreid"):
        raise ValueError(f"{name}: expected gallery 'official' or 'torchreid', got {gallery!r}")
    at = find_folder(name, root, ["mars", "MARS", "Mars"], ["info", "bbox_train", "bbox_test"])
    info = at / "info"
    tables = {}
    for split in ("train", "test"):
        names = _lines(name, info / f"{split}_name.txt")
        tracks = _mat(name, info / f"tracks_{split}_info.mat", f"track_{split}_info", 4)
        tables[split] = _mars_table(name, at, f"bbox_{split}", names, tracks, info / f"{split}_name.txt")
    wanted = _mat(name, info / "query_IDX.mat", "query_IDX").reshape(-1) - 1
    test, tracklets = tables["test"], tables["test"].extra["tracklet"]
    if len(wanted) and not 0 <= wanted.min() <= wanted.max() <= tracklets.max(initial=-1):
        raise ValueError(f"{name}: expected query_IDX within the test tracks, got some outside in {info}")
    is_query = np.isin(tracklets, wanted)
    facts: dict[str, Any] = {"query_in_gallery": gallery == "official"}
    require_files(name, tables["train"], test)
    whole = checked(
        ReidData(name, tables["train"], test.select(is_query), test, distractor=0, info=facts), MARS_PUBLISHED
    )
    if gallery == "official":
        return whole
    left = test.select(~is_query & (test.pids != -1))
    return ReidData(name, whole.train, whole.query, left, distractor=0, notes=whole.notes, info=facts)


def _two_cameras(name: str, split: int, splits: Sequence[Any], persons: int) -> tuple[Ints, Ints]:
    """Rows of the persons of a split for training and for testing."""
    if not 0 <= split < len(splits):
        raise ValueError(f"{name}: expected split in 0..{len(splits) - 1}, got {split}")
    train, test = (np.asarray(part, np.int64) for part in splits[split])
    both = np.concatenate([train, test])
    if len(both) and (both.min() < 0 or both.max() >= persons or len(np.unique(both)) != len(both)):
        raise ValueError(f"{name}: expected {persons} persons in each split, got indices outside or twice in {split}")
    return train, test


def _walks(
    root: Path, folders: Sequence[Path], persons: Sequence[str], chosen: Ints, cameras: Sequence[int]
) -> Records:
    """One tracklet for each chosen person and camera; pids are the persons' places in the list, from 1."""
    paths: list[str] = []
    numbers: list[tuple[int, int, int, int]] = []
    for k in np.sort(chosen).tolist():
        for camera in cameras:
            folder = folders[camera] / persons[k]
            for i, leaf in enumerate(list_images(folder)):
                paths.append((folder / leaf).relative_to(root).as_posix())
                numbers.append((k + 1, camera + 1, 2 * k + camera, i))
    table = np.array(numbers, np.int64).reshape(-1, 4)
    columns = {"tracklet": table[:, 2], "frame": table[:, 3]}
    return Records(root, tuple(paths), table[:, 0], table[:, 1], columns)


def _persons(name: str, folders: Sequence[Path]) -> list[str]:
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{name}: found no folder {folder}")
        found.append({p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")})
    return sorted(found[0] & found[1])


def _split_data(
    name: str,
    root: Path,
    folders: Sequence[Path],
    persons: Sequence[str],
    splits: Sequence[Any],
    split: int,
    published: Mapping[str, Mapping[str, int]],
    notes: Sequence[str],
) -> ReidData:
    train, test = _two_cameras(name, split, splits, len(persons))
    walk = partial(_walks, root, folders, persons)
    tables = (walk(train, (0, 1)), walk(test, (0,)), walk(test, (1,)))
    facts = {"split": split, "splits": len(splits)}
    return checked(ReidData(name, *tables, info=facts), published, notes)


@reader("ilids_vid")
def ilids_vid(name: str, root: Root | None = None, *, split: int = 0) -> ReidData:
    """iLIDS-VID: one of the 10 official splits; query camera 1, gallery camera 2 (Wang et al., ECCV 2014).

    Args:
        name: The name asked for.
        root: See `load_dataset`.
        split: 0..9. Published scores are means over the ten: `engine.sets.evaluate_splits`.
    """
    at = find_folder(name, root, ["ilids-vid", "iLIDS-VID", "ilids_vid", "ilidsvid"], ["i-LIDS-VID", "sequences"])
    base = at / "i-LIDS-VID" if (at / "i-LIDS-VID").is_dir() else at
    folders = [base / "sequences" / "cam1", base / "sequences" / "cam2"]
    leaf = "train_test_splits_ilidsvid.mat"
    places = [at / "train-test people splits" / leaf, at / leaf, base / leaf]
    file = next((p for p in places if p.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{name}: found no {leaf} in {at} or its folder 'train-test people splits'")
    table = _mat(name, file, "ls_set") - 1
    half = table.shape[1] // 2
    splits = [(row[half:], row[:half]) for row in table]
    return _split_data(name, at, folders, _persons(name, folders), splits, split, ILIDS_PUBLISHED, ())


def _prid_splits(name: str, at: Path, persons: list[str]) -> tuple[list[Any], list[str]]:
    """Ten divisions of the persons: torchreid's JSON, a .mat of 10 rows (first half test), or a seeded draw."""
    listed = at / "splits_prid2011.json"
    if listed.is_file():
        try:
            content = json.loads(listed.read_text(encoding="utf-8"))
            where = {p: k for k, p in enumerate(persons)}
            return [([where[p] for p in c["train"]], [where[p] for p in c["test"]]) for c in content], []
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{name}: expected splits of the {len(persons)} persons in {listed}, got {error!r}"
            ) from None
    for file in sorted(at.glob("*.mat")):
        from scipy.io import loadmat

        found = [v for k, v in loadmat(str(file)).items() if not k.startswith("__") and np.ndim(v) == 2]
        for value in found:
            table = np.asarray(value)
            if table.shape == (10, len(persons)) and table.dtype.kind in "iuf":
                rows = table.astype(np.int64) - 1
                half = len(persons) // 2
                return [(row[half:], row[:half]) for row in rows], []
    half, draws = len(persons) // 2, []
    for k in range(10):
        rng = np.random.Generator(np.random.Philox(key=[k, 0x9812]))
        order = np.argsort(rng.random(len(persons)), kind="stable")
        draws.append((order[half:], order[:half]))
    return draws, [f"no split file in {at}: ten halves were drawn from fixed seeds"]


@reader("prid2011")
def prid2011(name: str, root: Root | None = None, *, split: int = 0, least: int = 27) -> ReidData:
    """PRID2011, multi-shot (Hirzer et al., SCIA 2011): persons 1..200 with 27 frames or more in both cameras, 178.

    Query camera a, gallery camera b; ten splits of 89 and 89 from `splits_prid2011.json` (torchreid's) or a .mat of 10
    rows, else halves drawn from fixed seeds, which a `DataWarning` says.

    Args:
        name: The name asked for.
        root: See `load_dataset`.
        split: 0..9.
        least: Frames that both tracklets must have; 21 gives 183 persons.
    """
    at = find_folder(name, root, ["prid2011", "prid_2011", "PRID2011"], ["prid_2011", "multi_shot"])
    base = at / "prid_2011" if (at / "prid_2011").is_dir() else at
    folders = [base / "multi_shot" / "cam_a", base / "multi_shot" / "cam_b"]
    persons = [p for p in _persons(name, folders) if (m := re.fullmatch(r"person_(\d+)", p)) and int(m[1]) <= 200]
    persons = [p for p in persons if all(len(list_images(folder / p)) >= least for folder in folders)]
    splits, notes = _prid_splits(name, at, persons)
    published = PRID_PUBLISHED if least == 27 else {}
    return _split_data(name, at, folders, persons, splits, split, published, notes)


def as_sets(frames: Records, by: Sequence[str] = ("pid", "camid"), *, first: int = 0) -> Records:
    """The table with the columns `tracklet` (rows that agree in `by`, numbered from `first`) and `frame` (in order)."""
    sets = Tracklets.of(frames, by)
    tracklet, frame = np.empty(len(frames), np.int64), np.empty(len(frames), np.int64)
    tracklet[sets.rows] = np.repeat(np.arange(len(sets)), sets.lengths) + first
    frame[sets.rows] = np.arange(len(sets.rows)) - np.repeat(sets.offsets[:-1], sets.lengths)
    return frames.with_extra(tracklet=tracklet, frame=frame)


@reader("cuhk03_sets")
def cuhk03_sets(name: str, root: Root | None = None, *, boxes: str = "detected") -> ReidData:
    """CUHK03-NP as sets: all images of one person and view. Query: the test persons' sets of view 1, gallery: view 2.

    Args:
        name: The name asked for.
        root: See `load_dataset`.
        boxes: `detected` or `labeled`.
    """
    data = cuhk03_np("cuhk03_np", root, boxes=boxes)
    train, test = as_sets(data.train), concatenate([data.query, data.gallery], offset=False)
    test = test.select(np.argsort(test.paths))  # of view 1 and view 2 in the files' order
    query = as_sets(test.select(test.camids == 1))
    gallery = as_sets(test.select(test.camids == 2), first=len(Tracklets.of(query)))
    made = ReidData(name, train, query, gallery, notes=data.notes)
    return checked(made, CUHK03_PUBLISHED if boxes == "detected" else {})


@reader("market751_sets")
def market751_sets(name: str, root: Root | None = None, *, least: int = 3) -> ReidData:
    """Tracklets of Market-1501's training set, divided by the identities of `market751_holdout`.

    Query: the longest tracklet of each test identity and camera where another camera has one too; gallery: all test
    tracklets, the queries among them as in MARS.

    Args:
        name: The name asked for.
        root: See `load_dataset`.
        least: Leave out tracklets of fewer images.
    """
    whole, holdout = named_split("market751_tracklets", root).train, named_split("market751_holdout", root)
    whole = Records(
        whole.root, whole.paths, whole.pids, whole.camids, {**whole.extra, "frame": whole.extra["position"]}
    )
    sets = Tracklets.of(whole, least=least)
    is_test = ~np.isin(sets.pids, np.unique(holdout.train.pids))
    is_query = np.zeros(len(sets), bool)
    for pid in np.unique(sets.pids[is_test]):
        rows = np.flatnonzero(sets.pids == pid)
        cameras = np.unique(sets.camids[rows])
        if len(cameras) < 2:
            continue
        for camera in cameras:
            seen = rows[sets.camids[rows] == camera]
            is_query[seen[np.argmax(sets.lengths[seen])]] = True
    parts = (sets.select(~is_test).records(), sets.select(is_query).records(), sets.select(is_test).records())
    return ReidData(name, *parts, info={"least": least, "query_in_gallery": True})


@reader("pets09_tracklets")
def pets09_tracklets(name: str, root: Root | None = None) -> ReidData:
    """PETS 2009 S2.L1 crops of `tracklets/T01/...`, tracks grouped into persons; the camera is the number of the visit.

    Query: every later visit; gallery: each person's first. `person_groups_by_eye.json` says who is who.
    """
    at = find_folder(name, root, ["pets09_s2l1"], ["tracklets"])
    groups_at = at / "person_groups_by_eye.json"
    try:
        groups = json.loads(groups_at.read_text(encoding="utf-8"))["groups"]
        person = {int(track): int(pid) for pid, tracks in groups.items() for track in tracks}
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: found no {groups_at.name} in {at}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: expected groups of tracks in {groups_at}, got {error!r}") from None
    found: list[tuple[int, int, list[tuple[int, str]]]] = []  # person, track, frames
    for folder in sorted(p for p in (at / "tracklets").iterdir() if p.is_dir()):
        frames = []
        for leaf in list_images(folder):
            match = re.fullmatch(r"P\d+C\d+T(\d+)F(\d+)", Path(leaf).stem)
            if match is None:
                raise ValueError(f"{name}: expected names like P01C1T01F0226.jpg in {folder}, got {leaf}")
            frames.append((int(match[2]), f"tracklets/{folder.name}/{leaf}"))
        track = int(folder.name.lstrip("T"))
        if track not in person:
            raise ValueError(f"{name}: expected track {track} in a group of {groups_at}, got none")
        found.append((person[track], track, sorted(frames)))
    visit: dict[int, int] = {}
    paths: list[str] = []
    numbers: list[tuple[int, int, int, int]] = []
    for pid, track, frames in sorted(found, key=lambda f: (f[2][0][0] if f[2] else 0, f[1])):
        visit[pid] = visit.get(pid, 0) + 1
        for number, path in frames:
            paths.append(path)
            numbers.append((pid, visit[pid], track, number))
    table = np.array(numbers, np.int64).reshape(-1, 4)
    columns: dict[str, NDArray[Any]] = {"tracklet": table[:, 2], "frame": table[:, 3]}
    whole = Records(at, tuple(paths), table[:, 0], table[:, 1], columns)
    parts = (Records.empty(at), whole.select(whole.camids > 1), whole.select(whole.camids == 1))
    return ReidData(name, *parts)
