# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Readers of video sets, on tiny made-up copies of each layout, and the published counts where the data is there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import reidfast.data as data
from reidfast.data import Tracklets
from reidfast.data.registry import data_root

pytestmark = pytest.mark.filterwarnings("error::reidfast.data.DataWarning")


def load_small(name: str, root: Path, **options: object) -> data.ReidData:
    with pytest.warns(data.DataWarning, match="as published"):
        return data.load_dataset(name, root, **options)


def mars(folder: Path, trees: SimpleNamespace) -> Path:
    """Two training tracks; test: a query, its match in another camera, a distractor, junk."""
    from scipy.io import savemat

    def names(pid: str, camera: int, track: int, frames: int) -> list[str]:
        return [f"{pid}C{camera}T{track:04d}F{i + 1:03d}.jpg" for i in range(frames)]

    train = names("0001", 1, 1, 3) + names("0003", 2, 1, 2)
    test = names("00-1", 1, 1, 2) + names("0000", 2, 3, 2) + names("0002", 1, 1, 3) + names("0002", 4, 2, 1)
    trees.touch_images(folder / "bbox_train", [f"{n[:4]}/{n}" for n in train])
    trees.touch_images(folder / "bbox_test", [f"{n[:4]}/{n}" for n in test])
    info = folder / "info"
    info.mkdir()
    (info / "train_name.txt").write_text("\n".join(train) + "\n")
    (info / "test_name.txt").write_text("\n".join(test) + "\n")
    savemat(info / "tracks_train_info.mat", {"track_train_info": np.array([[1, 3, 1, 1], [4, 5, 3, 2]], float)})
    tracks = [[1, 2, -1, 1], [3, 4, 0, 2], [5, 7, 2, 1], [8, 8, 2, 4]]
    savemat(info / "tracks_test_info.mat", {"track_test_info": np.array(tracks, float)})
    savemat(info / "query_IDX.mat", {"query_IDX": np.array([[3]], np.uint16)})
    return folder


def test_mars(trees: SimpleNamespace, tmp_path: Path) -> None:
    mars(tmp_path / "MARS", trees)
    found = load_small("mars", tmp_path)
    train, query, gallery = (Tracklets.of(t) for t in found.splits.values())
    assert train.lengths.tolist() == [3, 2] and train.pids.tolist() == [1, 3] and train.camids.tolist() == [1, 2]
    assert found.train.paths[3] == "bbox_train/0003/0003C2T0001F001.jpg"
    assert gallery.pids.tolist() == [-1, 0, 2, 2] and gallery.lengths.tolist() == [2, 2, 3, 1]
    assert gallery.camids.tolist() == [1, 2, 1, 4]
    assert query.extra["tracklet"].tolist() == [2] and query.lengths.tolist() == [3] and found.info["query_in_gallery"]
    counts = found.summary()["gallery"]
    assert (counts["tracklets"], counts["junk_tracklets"], counts["distractor_tracklets"]) == (4, 1, 1)
    assert "gallery: expected 12,180 tracklets as published, found 4" in found.notes
    assert "4 tracklets" in found.describe()
    left = Tracklets.of(load_small("mars", tmp_path, gallery="torchreid").gallery)
    assert left.pids.tolist() == [0, 2] and left.extra["tracklet"].tolist() == [1, 3]
    with pytest.raises(ValueError, match="'official' or 'torchreid', got 'mine'"):
        data.load_dataset("mars", tmp_path, gallery="mine")


def test_mars_errors_name_the_file(trees: SimpleNamespace, tmp_path: Path) -> None:
    from scipy.io import savemat

    at = mars(tmp_path / "MARS", trees)
    savemat(at / "info/query_IDX.mat", {"query_IDX": np.array([[9]])})
    with pytest.raises(ValueError, match="query_IDX within the test tracks"):
        data.load_dataset("mars", at)
    savemat(at / "info/tracks_train_info.mat", {"track_train_info": np.array([[1, 99, 1, 1]])})
    with pytest.raises(ValueError, match="tracks within the 5 names in .*train_name.txt"):
        data.load_dataset("mars", at)
    savemat(at / "info/tracks_train_info.mat", {"other": np.array([[1]])})
    with pytest.raises(ValueError, match="the matrix track_train_info in .*tracks_train_info.mat"):
        data.load_dataset("mars", at)
    (at / "info/tracks_train_info.mat").unlink()
    with pytest.raises(FileNotFoundError, match="found no tracks_train_info.mat"):
        data.load_dataset("mars", at)
    with pytest.raises(FileNotFoundError, match="mars: found none of info, bbox_train, bbox_test"):
        data.load_dataset("mars", at / "info")


def test_mars_missing_frames(trees: SimpleNamespace, tmp_path: Path) -> None:
    at = mars(tmp_path / "MARS", trees)
    (at / "bbox_test/0002/0002C1T0001F002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 13 listed images are missing, first .*0002C1T0001F002.jpg"):
        data.load_dataset("mars", at)


def ilids(folder: Path, trees: SimpleNamespace, persons: int = 4) -> Path:
    from scipy.io import savemat

    names = [
        f"sequences/cam{c}/person{p * 3:03d}/cam{c}_person{p * 3:03d}_{i:05d}.png"
        for c in (1, 2)
        for p in range(1, persons + 1)
        for i in range(2 + c)
    ]
    trees.touch_images(folder / "i-LIDS-VID", names)
    (folder / "train-test people splits").mkdir()
    splits = np.array([[1, 2, 3, 4], [4, 1, 2, 3]], np.uint16)
    savemat(folder / "train-test people splits/train_test_splits_ilidsvid.mat", {"ls_set": splits})
    return folder


def test_ilids(trees: SimpleNamespace, tmp_path: Path) -> None:
    """Columns of the first half are the test persons, 1-based in the sorted folders."""
    ilids(tmp_path / "ilids-vid", trees)
    found = load_small("ilids_vid", tmp_path, split=1)
    train, query, gallery = (Tracklets.of(t) for t in found.splits.values())
    assert query.pids.tolist() == gallery.pids.tolist() == [1, 4] and train.pids.tolist() == [2, 2, 3, 3]
    assert query.camids.tolist() == [1, 1] and gallery.camids.tolist() == [2, 2]
    assert query.lengths.tolist() == [3, 3] and gallery.lengths.tolist() == [4, 4]
    assert "person012" in found.query.paths[3] and found.info == {"split": 1, "splits": 2}
    assert set(load_small("ilids_vid", tmp_path, split=0).query.pids) == {1, 2}
    with pytest.raises(ValueError, match=r"split in 0\.\.1, got 2"):
        data.load_dataset("ilids_vid", tmp_path, split=2)
    (tmp_path / "ilids-vid/train-test people splits/train_test_splits_ilidsvid.mat").unlink()
    with pytest.raises(FileNotFoundError, match="found no train_test_splits_ilidsvid.mat"):
        data.load_dataset("ilids_vid", tmp_path)


def prid(folder: Path, trees: SimpleNamespace) -> Path:
    """Persons 1..4 and 201; person 2 has too few frames in camera b."""
    for camera in "ab":
        for person in (1, 2, 3, 4, 201):
            count = 1 if (person, camera) == (2, "b") else 3
            names = [f"person_{person:04d}/{i + 1:04d}.png" for i in range(count)]
            trees.touch_images(folder / f"prid_2011/multi_shot/cam_{camera}", names)
    return folder


def test_prid(trees: SimpleNamespace, tmp_path: Path) -> None:
    at = prid(tmp_path / "prid2011", trees)
    content = [{"train": ["person_0001"], "test": ["person_0003", "person_0004"]}] * 10
    (at / "splits_prid2011.json").write_text(json.dumps(content))
    found = data.load_dataset("prid2011", tmp_path, split=9, least=3)
    assert set(found.train.pids) == {1} and set(found.query.pids) == {2, 3} == set(found.gallery.pids)
    assert "cam_a/person_0003" in found.query.paths[0] and "cam_b/person_0003" in found.gallery.paths[0]
    (at / "splits_prid2011.json").write_text(json.dumps([{"train": ["person_0002"], "test": []}]))
    with pytest.raises(ValueError, match="splits of the 3 persons in .*splits_prid2011.json"):
        data.load_dataset("prid2011", tmp_path, least=3)


def test_prid_splits_of_other_kinds(trees: SimpleNamespace, tmp_path: Path) -> None:
    from scipy.io import savemat

    at = prid(tmp_path / "prid2011", trees)
    with pytest.warns(data.DataWarning, match="no split file in .* ten halves were drawn"):
        drawn = [data.load_dataset("prid2011", tmp_path, split=k, least=1) for k in range(10)]
    assert all(len(set(d.query.pids)) == 2 and not set(d.query.pids) & set(d.train.pids) for d in drawn)
    assert len({tuple(sorted(set(d.query.pids))) for d in drawn}) > 2
    rows = np.array([np.roll([1, 2, 3, 4], k) for k in range(10)])
    savemat(at / "prid_splits.mat", {"ls_set": rows})
    for k in (0, 1):
        assert set(data.load_dataset("prid2011", tmp_path, split=k, least=1).query.pids) == set(rows[k, :2].tolist())


def test_cuhk03_sets(trees: SimpleNamespace, tmp_path: Path) -> None:
    trees.cuhk03(tmp_path / "cuhk03_np")
    with pytest.warns(data.DataWarning):
        found = data.load_dataset("cuhk03_sets", tmp_path)
    train, query, gallery = (Tracklets.of(t) for t in found.splits.values())
    assert train.pids.tolist() == [1, 1, 3] and train.lengths.tolist() == [1, 1, 1]
    assert query.camids.tolist() == [1] and gallery.camids.tolist() == [2] and gallery.lengths.tolist() == [2]
    assert query.extra["tracklet"].tolist() == [0] and gallery.extra["tracklet"].tolist() == [1]


def test_pets_tracklets(trees: SimpleNamespace, tmp_path: Path) -> None:
    at = tmp_path / "pets09_s2l1"
    names = ["T01/P01C1T01F0005.jpg", "T01/P01C1T01F0010.jpg", "T02/P01C1T02F0001.jpg", "T03/P03C1T03F0020.jpg"]
    trees.touch_images(at / "tracklets", names)
    (at / "person_groups_by_eye.json").write_text(json.dumps({"groups": {"1": [1, 3], "2": [2]}}))
    found = data.load_dataset("pets09_tracklets", tmp_path)
    query, gallery = Tracklets.of(found.query), Tracklets.of(found.gallery)
    assert gallery.pids.tolist() == [1, 2] and gallery.extra["tracklet"].tolist() == [1, 2]
    assert query.pids.tolist() == [1] and query.camids.tolist() == [2] and query.frames.extra["frame"].tolist() == [20]
    (at / "person_groups_by_eye.json").write_text(json.dumps({"groups": {"1": [1]}}))
    with pytest.raises(ValueError, match="track 2 in a group"):
        data.load_dataset("pets09_tracklets", tmp_path)


# the data itself


def real(folder: str) -> Path:
    try:
        root = data_root("test")
    except FileNotFoundError as error:
        pytest.skip(f"no real data: {error}")
    if not (root / folder).exists():
        pytest.skip(f"no {folder} in {root}")
    return root


def test_tv_cuhk03np() -> None:
    """The published counts, from the protocol's .mat and the images."""
    root = real("cuhk03_np")
    counts = data.load_dataset("cuhk03_np", root).summary()
    assert [counts[s]["images"] for s in ("train", "query", "gallery")] == [7365, 1400, 5332]
    assert [counts[s]["ids"] for s in ("train", "query", "gallery")] == [767, 700, 700]
    sets = data.load_dataset("cuhk03_sets", root)
    lengths = np.concatenate([Tracklets.of(t).lengths for t in sets.splits.values()])
    assert len(lengths) == 2934 and (lengths == 5).sum() == 2585 and sets.notes == ()


def test_real_sets() -> None:
    root = real("pets09_s2l1")
    pets = data.load_dataset("pets09_tracklets", root)
    assert len(pets.query) + len(pets.gallery) == 929 and len(Tracklets.of(pets.gallery)) == 10
    assert len(Tracklets.of(pets.query)) == 9
    real("splits/market751_tracklets.json")
    whole = data.load_dataset("market751_tracklets", root).train
    sets = Tracklets.of(whole)
    assert len(sets) == 6426 and (sets.lengths >= 3).sum() == 1593 and (sets.lengths >= 5).sum() == 274
    parts = data.load_dataset("market751_sets", root)
    held = data.load_dataset("market751_holdout", root)
    assert set(parts.train.pids) <= set(held.train.pids) and set(parts.query.pids) <= set(held.query.pids)
    both = Tracklets.of(parts.train), Tracklets.of(parts.gallery)
    assert len(both[0]) + len(both[1]) == 1593


def test_tv_mars() -> None:
    """The tracklets of MARS, and how many queries and pairs each protocol has."""
    root = real("mars")
    from scipy.io import loadmat

    info = next(p for p in (root / "mars/info", root / "MARS/info") if p.is_dir())
    tracks = loadmat(str(info / "tracks_test_info.mat"))["track_test_info"].astype(np.int64)
    query = loadmat(str(info / "query_IDX.mat"))["query_IDX"].reshape(-1).astype(np.int64) - 1
    pids, camids = tracks[:, 2], tracks[:, 3]
    assert len(tracks) == 12180 and (pids == -1).sum() == 870 and (pids == 0).sum() == 3248 and len(query) == 1980
    for rows, pairs, valid in (
        (np.arange(12180), 21813, 1980),
        (np.setdiff1d(np.flatnonzero(pids != -1), query), 16761, 1840),
    ):
        right = (pids[query, None] == pids[rows]) & (camids[query, None] != camids[rows])
        assert right.sum() == pairs and right.any(1).sum() == valid
