# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Person-search sets: readers on tiny made-up copies of the published layouts, PETS, and rendered scenes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidfast.data import DataWarning, Queries, Scenes, list_search_datasets, load_search
from reidfast.data.search import draw_galleries, draw_queries
from reidfast.data.synthetic import CrowdSet, CrowdWorld
from reidfast.evaluation import Detections, box_iou, person_search


def records(rows, dtype):
    """MATLAB's array of structs."""
    out = np.empty((1, len(rows)), dtype)
    for i, row in enumerate(rows):
        out[0, i] = row
    return out


def cell(items):
    out = np.empty((len(items), 1), object)
    for i, item in enumerate(items):
        out[i, 0] = item
    return out


PLACE = [("imname", object), ("idlocate", object), ("ishard", object)]


def places(*rows):
    return records([(name, np.array(box, np.int32).reshape(-1, 4), 0) for name, box in rows], PLACE)


def cuhk_sysu(folder: Path) -> Path:
    """Two training images of one person, three searched images of two."""
    from scipy.io import savemat

    boxes = {
        "s1.jpg": [[1, 2, 10, 20], [50, 2, 10, 20]],
        "s2.jpg": [[3, 4, 10, 20]],
        "s3.jpg": [[5, 6, 30, 60], [70, 6, 30, 60]],
        "s4.jpg": [[7, 8, 30, 60], [9, 9, 0, 60]],  # the second has no width
        "s5.jpg": [[9, 9, 30, 60]],
    }
    (folder / "Image" / "SSM").mkdir(parents=True)
    tables = folder / "annotation" / "test" / "train_test"
    tables.mkdir(parents=True)
    for i, name in enumerate(boxes):
        Image.new("RGB", (120, 80), (40 * i, 0, 0)).save(folder / "Image" / "SSM" / name)
    box = [("idlocate", object), ("ishard", object)]
    images = [
        (name, len(b), records([(np.array(x, np.int32).reshape(1, 4), 0) for x in b], box)) for name, b in boxes.items()
    ]
    savemat(
        folder / "annotation" / "Images.mat",
        {"Img": records(images, [("imname", object), ("nAppear", object), ("box", object)])},
    )
    savemat(folder / "annotation" / "pool.mat", {"pool": cell(["s3.jpg", "s4.jpg", "s5.jpg"])})
    person = [("idname", object), ("nAppear", object), ("scene", object)]
    scene = places(("s1.jpg", [1, 2, 10, 20]), ("s2.jpg", [3, 4, 10, 20]), ("s2.jpg", [0, 0, 1, 1]))
    savemat(tables / "Train.mat", {"Train": cell([records([("p1", 2, scene)], person)])})
    test = [("Query", object), ("Gallery", object)]
    for size, second in ((50, "s5.jpg"), (100, "s4.jpg")):
        rows = [
            (places(("s3.jpg", [5, 6, 30, 60])), places(("s4.jpg", [7, 8, 30, 60]), ("s5.jpg", []))),
            (places(("s5.jpg", [9, 9, 30, 60])), places(("s3.jpg", [70, 6, 30, 60]), (second, []))),
        ]
        savemat(tables / f"TestG{size}.mat", {f"TestG{size}": records(rows, test)})
    return folder


@pytest.mark.filterwarnings("ignore::reidfast.data.DataWarning")
def test_cuhk_sysu(tmp_path):
    cuhk_sysu(tmp_path / "cuhk_sysu")
    with pytest.warns(DataWarning, match="expected 11,206 images"):
        data = load_search("cuhk_sysu", tmp_path)
    assert data.train.paths == ("s1.jpg", "s2.jpg") and data.gallery.paths == ("s3.jpg", "s4.jpg", "s5.jpg")
    assert data.train.pids.tolist() == [1, -1, 1] and data.gallery.pids.tolist() == [2, 3, 2, 3]
    assert data.train.people(0).boxes.tolist() == [[1, 2, 11, 22], [50, 2, 60, 22]]
    assert len(data.gallery.people(1).boxes) == 1  # the one without width is no box
    assert data.queries.images.tolist() == [0, 2] and data.queries.boxes[0].tolist() == [5, 6, 35, 66]
    assert data.queries.pids.tolist() == [2, 3] and data.default == "100"
    assert [g.tolist() for g in data.gallery_lists()] == [[1, 2], [0, 1]]
    assert [g.tolist() for g in data.gallery_lists(50)] == [[1, 2], [0, 2]]
    assert data.gallery_lists(-1 if "-1" in data.galleries else "all") is None
    assert any("1 boxes of persons" in note for note in data.notes)
    assert data.gallery.image(1).size == (120, 80) and "gallery" in data.describe()
    with pytest.raises(ValueError, match="expected a gallery among"):
        data.gallery_lists(500)
    features = np.eye(2)[[0, 1, 0, 1]]
    found = Detections(data.gallery.box_images, data.gallery.boxes, features=features)
    got = person_search(
        data.queries.with_features(np.eye(2)), found, data.gallery.truth, galleries=data.gallery_lists(100)
    )
    assert got.mean_ap == 1.0 and got.positives.tolist() == [1, 1]


def test_cuhk_sysu_says_what_is_missing(tmp_path):
    folder = cuhk_sysu(tmp_path / "CUHK-SYSU")
    tables = folder / "annotation" / "test" / "train_test"
    (tables / "TestG100.mat").unlink()
    with pytest.raises(ValueError, match="expected a gallery among all, 50"):
        load_search("cuhk_sysu", tmp_path)
    (tables / "Train.mat").write_bytes(b"no matlab")
    with pytest.raises(ValueError, match="expected a MATLAB file"):
        load_search("cuhk_sysu", tmp_path)
    (tables / "Train.mat").unlink()
    with pytest.raises(FileNotFoundError, match="Train.mat"):
        load_search("cuhk_sysu", tmp_path)
    with pytest.raises(FileNotFoundError, match="found none of"):
        load_search("cuhk_sysu", tables)


def prw(folder: Path) -> Path:
    from scipy.io import savemat

    frames = {"train": ["c1s1_000001", "c2s1_000002"], "test": ["c1s1_000151", "c6s3_000200"]}
    (folder / "annotations").mkdir(parents=True)
    people = {
        "c1s1_000001": [[4, 10, 20, 30, 60]],
        "c2s1_000002": [[4, -5, 20, 30, 60], [-2, 70, 20, 30, 60]],
        "c1s1_000151": [[7, 10, 20, 30, 60]],
        "c6s3_000200": [[7, 15, 25, 30, 60]],
    }
    for frame, rows in people.items():
        key = "anno_file" if frame.startswith("c2") else "box_new"
        savemat(folder / "annotations" / f"{frame}.jpg.mat", {key: np.array(rows, float)})
    for part, names in frames.items():
        savemat(folder / f"frame_{part}.mat", {f"img_index_{part}": cell(names)})
    (folder / "query_info.txt").write_text("7 10 20 30 60 c1s1_000151\r\n", newline="")
    return folder


@pytest.mark.filterwarnings("ignore::reidfast.data.DataWarning")
def test_prw(tmp_path):
    folder = prw(tmp_path / "PRW-v16.04.20")
    with pytest.warns(DataWarning, match="2,057 queries"):
        data = load_search("prw", tmp_path)
    assert data.train.camids.tolist() == [1, 2] and data.gallery.camids.tolist() == [1, 6]
    assert data.train.pids.tolist() == [4, 4, -2]
    assert data.train.people(1).boxes[0].tolist() == [0, 20, 25, 80]  # cut off at the border, not moved
    assert data.queries.images.tolist() == [0] and data.queries.boxes.tolist() == [[10, 20, 40, 80]]
    found = Detections(data.gallery.box_images, data.gallery.boxes, features=np.ones((2, 1)))
    for options in ({}, {"protocol": "prw", "image_camids": data.gallery.camids}):
        got = person_search(data.queries.with_features(np.ones((1, 1))), found, data.gallery.truth, **options)
        assert got.mean_ap == 1.0 and got.positives.tolist() == [1]
    for line, words in (("7 10 20", "expected 'pid x y w h frame'"), ("7 1 2 3 4 c1s1_9", "a frame of frame_test")):
        (folder / "query_info.txt").write_text(line)
        with pytest.raises(ValueError, match=words):
            load_search("prw", tmp_path)


def test_unknown_name():
    assert {"cuhk_sysu", "prw", "pets09_s2l1", "synthetic_scenes"} <= set(list_search_datasets())
    with pytest.raises(ValueError, match="expected one of cuhk_sysu"):
        load_search("cuhk")


def test_scenes_check_their_tables():
    good = {"root": ".", "paths": ("a", "b"), "camids": [0, 0], "box_images": [0, 1], "boxes": np.ones((2, 4))}
    scenes = Scenes(**good, pids=[3, -1])
    assert scenes.people(1).values.tolist() == [-1]
    with pytest.raises(ValueError, match="brings detections"):
        scenes.detections(0)
    for change, words in (
        ({"box_images": [1, 0]}, "ascending"),
        ({"box_images": [0, 2]}, r"in \[0, 2\)"),
        ({"camids": [0]}, "2 cameras"),
        ({"boxes": np.ones((2, 3))}, r"\(n, 4\)"),
        ({"boxes": -np.arange(8.0).reshape(2, 4)}, "x2 >= x1"),
        ({"boxes": np.ones((1, 4))}, "for each box"),
    ):
        with pytest.raises(ValueError, match=words):
            Scenes(**{**good, **change}, pids=[3, -1])
    with pytest.raises(ValueError, match="for each query"):
        Queries([0], np.ones((1, 4)), [1, 2])


def test_queries_are_apart_and_findable():
    rows = [(f"{i}", i % 2, [[0, 0, 5, 9], [9, 0, 14, 9]], [i // 4, -1]) for i in range(12)]
    scenes = Scenes.build(".", rows, frames=np.arange(12))
    queries, lists = draw_queries(scenes, per_person=2, apart=3)
    assert (np.bincount(queries.pids) == 2).all()
    for image, pid, searched in zip(queries.images, queries.pids, lists, strict=True):
        same = scenes.camids[searched] == scenes.camids[image]
        assert (np.abs(searched[same] - image) >= 3).all()
        assert np.isin(scenes.box_images[scenes.pids == pid], searched).any()
    # the two queries of a person come from both cameras
    assert all(len(set(scenes.camids[queries.images[queries.pids == p]])) == 2 for p in range(3))
    galleries = draw_galleries(scenes, queries, [6])["6"]
    for image, pid, listed in zip(queries.images, queries.pids, galleries, strict=True):
        shows = set(scenes.box_images[scenes.pids == pid].tolist()) - {int(image)}
        assert len(listed) == 6 and shows <= set(listed.tolist()) and image not in listed


SMALL = {"ids": 6, "cameras": 2, "train": 4, "gallery": 6, "people": 2, "height": 96, "width": 128}


def test_rendered_scenes(tmp_path):
    data = load_search("synthetic_scenes", tmp_path / "a", **SMALL)
    assert len(data.train) == 4 and len(data.gallery) == 6 and data.gallery.image(0).size == (128, 96)
    train, test = set(data.train.pids[data.train.pids > 0]), set(data.gallery.pids[data.gallery.pids > 0])
    assert train == {1, 2, 3} and test == {4, 5, 6}
    assert len(data.queries) and set(data.queries.pids) <= test
    for i in range(6):
        boxes, pids = data.gallery.people(i)
        assert len(set(pids[pids > 0])) == (pids > 0).sum() <= 2
        assert (boxes[:, 2:] <= [128, 96]).all() and (boxes[:, :2] >= 0).all()
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.jpg")}
    again = load_search("synthetic_scenes", tmp_path / "a", **SMALL)
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.jpg")}
    np.testing.assert_array_equal(again.gallery.boxes, data.gallery.boxes)
    with pytest.raises(FileExistsError, match="other parameters"):
        load_search("synthetic_scenes", tmp_path / "a", **{**SMALL, "seed": 1})


def test_an_interrupted_folder_is_finished(tmp_path):
    whole = load_search("synthetic_scenes", tmp_path / "a", **SMALL)
    load_search("synthetic_scenes", tmp_path / "b", **SMALL)
    os.remove(tmp_path / "b" / "crowds.json")
    os.remove(tmp_path / "b" / "gallery" / "00003_c2.jpg")
    os.remove(tmp_path / "b" / "train" / "00002.json")
    part = load_search("synthetic_scenes", tmp_path / "b", **SMALL)
    assert part.gallery.paths == whole.gallery.paths
    for path in ("gallery/00003_c2.jpg", "train/00002_c1.jpg", "crowds.json"):
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    assert json.loads((tmp_path / "b" / "crowds.json").read_text())["parameters"]["ids"] == 6


def test_a_crowd_depends_on_its_arguments_alone():
    world = CrowdWorld(seed=3, difficulty=0.5, height=96, width=128)
    first = world.render([4, 5], 1, 7, alike=[4])
    world.render([9], 2, 1)
    again = CrowdWorld(seed=3, difficulty=0.5, height=96, width=128).render([4, 5], 1, 7, alike=[4])
    assert first.jpeg == again.jpeg and first.kinds == again.kinds
    assert first.jpeg != world.render([4, 5], 1, 8, alike=[4]).jpeg
    assert first.jpeg != CrowdWorld(seed=4, difficulty=0.5, height=96, width=128).render([4, 5], 1, 7, alike=[4]).jpeg


def test_boxes_hold_people():
    """Where a person is painted, the picture differs from the empty street; elsewhere it hardly does."""
    world = CrowdWorld(seed=0, difficulty=0.0, height=144, width=192, strangers=0, look_alikes=0)
    empty = world.render([], 1, 5).image.astype(float)
    crowd = world.render([1, 2, 3], 1, 5)
    changed = np.abs(crowd.image - empty).max(2) > 40
    inside = np.zeros(changed.shape, bool)
    for x1, y1, x2, y2 in crowd.boxes.astype(int):
        assert changed[y1:y2, x1:x2].mean() > 0.2
        inside[y1:y2, x1:x2] = True
    assert changed[inside].mean() > 20 * changed[~inside].mean()
    assert (box_iou(crowd.boxes[:, None], crowd.boxes) - np.eye(3)).max() < 0.5


def test_look_alikes_resemble():
    world = CrowdWorld()
    for pid in range(1, 20):
        person, other = world.person(pid), world.look_alike(pid)
        wear = ("upper", "pattern", "upper_colour", "lower", "lower_colour", "hat", "bag", "upper_second")
        differ = [k for k in wear if getattr(person, k) != getattr(other, k)]
        assert 1 <= len(differ) <= 3 and other.pid < 0


def test_everybody_is_dealt_equally_often():
    spec = CrowdSet(ids=10, train=20, gallery=20, people=3)
    for part in ("train", "gallery"):
        counts = np.bincount([p for _, cast in spec.casts(part) for p in cast])[spec.persons(part)]
        assert counts.max() - counts.min() <= 2
    with pytest.raises(ValueError, match="no more than the persons"):
        CrowdSet(ids=4, people=3)
    with pytest.raises(ValueError, match="expected parameters among"):
        load_search("synthetic_scenes", scenes=3)


@pytest.mark.data
def test_pets(tmp_path, monkeypatch):
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    monkeypatch.setenv("REIDFAST_CACHE", str(tmp_path))
    try:
        data = load_search("pets09_s2l1", every=60)
    except FileNotFoundError as error:
        pytest.skip(f"PETS 2009 is not here: {error}")
    assert data.gallery.image(0).size == (768, 576) and data.gallery.frames[0] == 420
    assert (data.gallery.pids > 0).all() and len(np.unique(data.gallery.pids)) >= 4
    found = []
    for i in range(len(data.gallery)):
        boxes, scores = data.gallery.detections(i)
        assert len(scores) == len(boxes)
        found.append(box_iou(data.gallery.people(i).boxes[:, None], boxes).max(1) > 0.5)
    assert np.concatenate(found).mean() > 0.6
    for image, searched in zip(data.queries.images, data.gallery_lists(), strict=True):
        assert (np.abs(data.gallery.frames[searched] - data.gallery.frames[image]) >= 70).all()
    assert "frames 1-380" in data.info["split"]


def test_command_line(tmp_path, capsys):
    from reidfast.cli import main

    load_search("synthetic_scenes", tmp_path / "a", **SMALL)
    options = [f"--data-option={k}={v}" for k, v in SMALL.items()]
    assert main(["data", "list"]) == 0 and "synthetic_scenes" in capsys.readouterr().out
    assert main(["data", "show", "synthetic_scenes", "--root", str(tmp_path / "a"), *options]) == 0
    assert "of 3 persons" in capsys.readouterr().out
    assert main(["data", "check", "synthetic_scenes", "--root", str(tmp_path / "a"), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["broken"] == []
    command = ["extract", str(tmp_path / "x.npz"), "--data", "synthetic_scenes", "--model", "color_stripes"]
    assert main(command) == 2
    assert "person search" in capsys.readouterr().err
