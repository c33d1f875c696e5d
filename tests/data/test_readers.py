# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import reidfast.data as data

pytestmark = pytest.mark.filterwarnings("error::reidfast.data.DataWarning")


def load_small(name: str, root: Path, **options: object) -> data.ReidData:
    """Loads a made-up tree, whose counts must be complained about."""
    with pytest.warns(data.DataWarning, match="as published"):
        return data.load_dataset(name, root, **options)


def test_names_and_unknown_name() -> None:
    assert {"market1501", "cuhk03_np", "msmt17", "folder", "market751_holdout"} <= set(data.list_datasets())
    with pytest.raises(ValueError, match="expected one of cuhk03_np, .* got 'market'"):
        data.load_dataset("market")


# where data is looked for


def test_missing_folder_says_what_and_where(
    trees: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"market1501: no such folder: .*nowhere \(the folder given\)"):
        data.load_dataset("market1501", tmp_path / "nowhere")
    monkeypatch.setenv("REIDFAST_DATA", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"gone \(REIDFAST_DATA\)"):
        data.load_dataset("msmt17")
    with pytest.raises(
        FileNotFoundError, match="bounding_box_train, query, bounding_box_test in .* or its folder market1501"
    ):
        data.load_dataset("market1501", tmp_path)
    monkeypatch.delenv("REIDFAST_DATA")
    with pytest.raises(
        FileNotFoundError, match="market1501: expected the folder .* REIDFAST_DATA, got neither"
    ) as error:
        data.load_dataset("market1501")
    assert "\n" not in str(error.value)
    trees.market(tmp_path / "sets/market1501")
    monkeypatch.setenv("REIDFAST_DATA", str(tmp_path / "sets"))
    assert len(load_small("market1501", None).train) == 3


# Market-1501


def test_market(trees: SimpleNamespace, tmp_path: Path) -> None:
    trees.market(tmp_path / "Market-1501-v15.09.15")
    found = load_small("market1501", tmp_path)
    assert found.train.paths[0] == "bounding_box_train/0002_c1s1_000451_03.jpg"
    assert found.train.pids.tolist() == [2, 2, 7] and found.train.camids.tolist() == [1, 2, 3]
    assert found.gallery.pids.tolist() == [-1, 0, 1, 1, 3] and found.query.camids.tolist() == [1, 2]
    assert found.gallery.extra["sequence"].tolist() == [1, 1, 1, 4, 1]
    assert found.gallery.extra["frame"].tolist() == [401, 401, 301, 12345, 1]
    assert found.summary()["gallery"] == {"images": 5, "ids": 2, "cameras": 4, "junk": 1, "distractors": 1}
    assert "train: expected 12,936 images as published, found 3" in found.notes
    same = load_small("market1501", tmp_path / "Market-1501-v15.09.15")  # its own folder does as well
    assert same.query.paths == found.query.paths and all(r.path.is_file() for r in same.gallery)


def test_market_train_only_says_what_is_missing(trees: SimpleNamespace, tmp_path: Path) -> None:
    trees.market(tmp_path, ["bounding_box_train"])
    with pytest.warns(data.DataWarning) as seen:
        found = data.load_dataset("market1501", tmp_path)
    assert any("no images in query and bounding_box_test" in str(w.message) for w in seen)
    assert len(found.train) == 3 and len(found.query) == len(found.gallery) == 0


def test_market_counts_are_the_published_ones(
    trees: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every number is compared: with the made-up tree's own counts as the published ones, nothing is said."""
    from reidfast.data import market1501

    trees.market(tmp_path)
    right = {
        "train": {"images": 3, "ids": 2, "cameras": 3},
        "query": {"images": 2, "ids": 2, "cameras": 2},
        "gallery": {"images": 5, "ids": 2, "cameras": 4, "junk": 1, "distractors": 1},
    }
    monkeypatch.setattr(market1501, "PUBLISHED", right)
    assert data.load_dataset("market1501", tmp_path).notes == ()
    for split, row in right.items():
        for key in row:
            wrong = {**right, split: {**row, key: row[key] + 1}}
            monkeypatch.setattr(market1501, "PUBLISHED", wrong)
            with pytest.warns(data.DataWarning, match=f"{split}: expected {row[key] + 1} {key} as published, found"):
                data.load_dataset("market1501", tmp_path)


def test_market_rejects_a_strange_name(trees: SimpleNamespace, tmp_path: Path) -> None:
    trees.market(tmp_path)
    trees.touch_images(tmp_path / "query", ["holiday.jpg"])
    with pytest.raises(ValueError, match=r"expected a name like 0002_c1s1_000451_03.jpg in .*query, got holiday.jpg"):
        data.load_dataset("market1501", tmp_path)


# CUHK03-NP


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_cuhk03_protocol(trees: SimpleNamespace, tmp_path: Path, boxes: str, suffix: str) -> None:
    trees.cuhk03(tmp_path / "cuhk03_np", boxes, suffix)
    found = load_small("cuhk03_np", tmp_path, boxes=boxes)
    assert found.train.paths == tuple(f"images_{boxes}/{n}{suffix}" for n in ("1_001_1_01", "1_001_2_06", "2_001_1_01"))
    assert found.train.pids.tolist() == [1, 1, 3] and found.train.camids.tolist() == [1, 2, 1]
    assert found.train.extra["pair"].tolist() == [1, 1, 2]
    assert found.query.pids.tolist() == [2] and found.gallery.camids.tolist() == [2, 2]


def test_cuhk03_renamed_folders(trees: SimpleNamespace, tmp_path: Path) -> None:
    at = tmp_path / "cuhk03-np" / "detected"
    trees.touch_images(at / "bounding_box_train", ["0001_c1_1.png", "0001_c2_6.png"])
    trees.touch_images(at / "query", ["0003_c1_22.png"])
    trees.touch_images(at / "bounding_box_test", ["0003_c1_21.png", "0003_c2_27.png"])
    found = load_small("cuhk03_np", tmp_path)
    assert found.train.pids.tolist() == [1, 1] and found.gallery.camids.tolist() == [1, 2]
    assert found.distractor is None


def test_cuhk03_errors(trees: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected boxes 'detected' or 'labeled', got 'drawn'"):
        data.load_dataset("cuhk03_np", tmp_path, boxes="drawn")
    trees.cuhk03(tmp_path)
    (tmp_path / "images_detected/1_002_1_01.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 6 listed images are missing, first .*1_002_1_01.png"):
        data.load_dataset("cuhk03_np", tmp_path)
    protocol = tmp_path / "cuhk03_new_protocol_config_detected.mat"
    protocol.write_bytes(b"MATLAB 5.0 MAT-file" + b"\0" * 200)
    with pytest.raises(ValueError, match="expected the CUHK03-NP protocol in"):
        data.load_dataset("cuhk03_np", tmp_path)
    protocol.unlink()
    with pytest.raises(FileNotFoundError, match="not the protocol file cuhk03_new_protocol_config_detected.mat"):
        data.load_dataset("cuhk03_np", tmp_path)


# MSMT17


@pytest.mark.parametrize("version", ["V1", "V2"])
def test_msmt17(trees: SimpleNamespace, tmp_path: Path, version: str) -> None:
    trees.msmt17(tmp_path / f"MSMT17_{version}", version)
    found = load_small("msmt17", tmp_path)
    assert found.info["version"] == version
    assert found.train.pids.tolist() == [0, 1, 1] and found.train.camids.tolist() == [1, 14, 2]
    assert found.query.pids.tolist() == [2] and found.gallery.pids.tolist() == [2, 3]  # past the training identities
    assert found.gallery.camids.tolist() == [15, 7]
    assert len(load_small("msmt17", tmp_path, val=False).train) == 2
    assert all(r.path.is_file() for t in found.splits.values() for r in t)


def test_msmt17_errors(trees: SimpleNamespace, tmp_path: Path) -> None:
    trees.msmt17(tmp_path)
    (tmp_path / "list_gallery.txt").unlink()
    with pytest.warns(data.DataWarning) as seen:
        data.load_dataset("msmt17", tmp_path)
    assert any("no list_gallery.txt" in str(w.message) for w in seen)
    (tmp_path / "list_query.txt").write_text("0000/0000_000_01_0113morning_0015_0.jpg\n")
    with pytest.raises(ValueError, match=r"expected '<path> <pid>' at .*list_query.txt:1"):
        data.load_dataset("msmt17", tmp_path)
    (tmp_path / "list_query.txt").write_text("0000/0000_000_01_none.jpg 0\n")
    with pytest.raises(FileNotFoundError, match="1 of 4 listed images are missing"):
        data.load_dataset("msmt17", tmp_path)


# a plain folder


def test_folder_without_splits(trees: SimpleNamespace, tmp_path: Path) -> None:
    trees.touch_images(tmp_path, ["0007/1_a.jpg", "0007/c2_b.png", "12/3_x.jpg", "12/1.jpg"])
    found = data.load_dataset("folder", tmp_path)
    assert found.train.pids.tolist() == [7, 7, 12, 12] and found.train.camids.tolist() == [1, 2, 1, 3]
    assert "name" not in found.train.extra
    drawn = data.load_dataset("folder", tmp_path, test=1.0)
    assert len(drawn.train) == 0 and len(drawn.query) == 4


def test_folder_with_splits_and_names(trees: SimpleNamespace, tmp_path: Path) -> None:
    trees.touch_images(tmp_path, ["train/bo/1_a.jpg", "query/ann/1_a.jpg", "gallery/ann/2_a.jpg", "gallery/cy/1_a.jpg"])
    found = data.load_dataset("folder", tmp_path)
    assert (
        found.train.pids.tolist() == [1] and found.query.pids.tolist() == [0] and found.gallery.pids.tolist() == [0, 2]
    )
    assert found.gallery.extra["name"].tolist() == ["ann", "cy"]
    with pytest.raises(ValueError, match="expected test=None"):
        data.load_dataset("folder", tmp_path, test=0.5)


def test_folder_errors(trees: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected root"):
        data.load_dataset("folder")
    with pytest.raises(FileNotFoundError, match="found no <person>/<camera>"):
        data.load_dataset("folder", tmp_path)
    trees.touch_images(tmp_path, ["1/front.jpg"])
    with pytest.raises(ValueError, match="got front.jpg"):
        data.load_dataset("folder", tmp_path)


def test_csv(trees: SimpleNamespace, tmp_path: Path) -> None:
    trees.touch_images(tmp_path, ["x/a.jpg", "x/b.jpg", "c.jpg"])
    table = tmp_path / "people.csv"
    table.write_text("split,path,pid,camid\ntrain,x/a.jpg,5,1\nquery,x/b.jpg,-1,2\ngallery,c.jpg,6,3\n")
    for found in (data.load_dataset("folder", table), data.load_dataset(str(table))):
        assert found.train.pids.tolist() == [5] and found.query.pids.tolist() == [-1]
        assert found.gallery.paths == ("c.jpg",) and found.gallery.camids.tolist() == [3]
    table.rename(tmp_path / "index.csv")
    assert len(data.load_dataset("folder", tmp_path).gallery) == 1


@pytest.mark.parametrize(
    "text,words",
    [
        ("path,pid,camid\na.jpg,1,1\n", "no split"),
        ("path,pid,camid,split\na.jpg,1,1,test\n", r"at .*index.csv:2, got 'test'"),
        ("path,pid,camid,split\na.jpg,1,one,train\n", "integer camid at .*:2, got 'one'"),
        ("path,pid,camid,split\na.jpg,1\n", "four values at .*:2"),
    ],
)
def test_csv_errors(trees: SimpleNamespace, tmp_path: Path, text: str, words: str) -> None:
    trees.touch_images(tmp_path, ["a.jpg"])
    (tmp_path / "index.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        data.load_dataset("folder", tmp_path)


def test_csv_missing_image(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("path,pid,camid,split\na.jpg,1,1,train\n")
    with pytest.raises(FileNotFoundError, match="1 of 1 listed images are missing, first .*a.jpg"):
        data.load_dataset("folder", tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file: .*none.csv"):
        data.load_dataset("folder", tmp_path / "none.csv")


# JSON splits

SPLIT = {
    "name": "three rows",
    "fields": ["path", "pid", "camid(1..6)", "seq", "frame"],
    "train": [["bounding_box_train/0002_c1s1_000451_03.jpg", 2, 1, 1, 451]],
    "query": [["query/0001_c1s1_001051_00.jpg", 1, 1, 1, 1051]],
    "gallery": [["bounding_box_test/0001_c6s4_012345_02.jpg", 1, 6, 4, 12345]],
}


def write_split(trees: SimpleNamespace, root: Path, content: object) -> None:
    trees.market(root / "market1501")
    (root / "splits").mkdir(exist_ok=True)
    (root / "splits/market751_mini.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_json_split(trees: SimpleNamespace, tmp_path: Path) -> None:
    write_split(trees, tmp_path, SPLIT)
    found = load_small("market751_mini", tmp_path)
    assert found.gallery.pids.tolist() == [1] and found.gallery.camids.tolist() == [6]
    assert found.gallery.extra["sequence"].tolist() == [4] and found.gallery.extra["frame"].tolist() == [12345]
    assert found.info["title"] == "three rows"
    other = data.load_dataset(str(tmp_path / "splits/market751_mini.json"), tmp_path / "market1501")
    assert other.query.paths == found.query.paths


def test_json_tracklets(trees: SimpleNamespace, tmp_path: Path) -> None:
    rows = [[2, 1, 1, ["0002_c1s1_000451_03.jpg"]], [7, 3, 2, ["0007_c3s2_000001_01.jpg"]]]
    write_split(trees, tmp_path, {"name": "t", "fields": ["pid", "camid", "seq", ["frames"]], "tracklets": rows})
    found = data.load_dataset("json", tmp_path / "splits/market751_mini.json", images=tmp_path / "market1501")
    assert found.train is found.info["tracklets"]
    assert found.train.pids.tolist() == [2, 7] and found.train.extra["tracklet"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "content,error,words",
    [
        ("{", ValueError, "expected a JSON split in"),
        ([1], ValueError, "expected the keys train"),
        ({**SPLIT, "train": [["a.jpg", 1]]}, ValueError, "expected rows .* under 'train'"),
        ({**SPLIT, "train": [["a.jpg", 1, "x", 1, 1]]}, ValueError, "integers after the path under 'train'"),
        (
            {**SPLIT, "train": [["a.jpg", 1, 1, 1, 1]]},
            FileNotFoundError,
            "1 of 3 listed images are missing, first .*a.jpg",
        ),
    ],
    ids=["cut off", "a list", "short row", "no number", "no image"],
)
def test_json_errors(
    trees: SimpleNamespace, tmp_path: Path, content: object, error: type[Exception], words: str
) -> None:
    write_split(trees, tmp_path, content)
    with pytest.raises(error, match=words):
        data.load_dataset("market751_mini", tmp_path)


def test_json_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found no split file"):
        data.load_dataset("market751_mini", tmp_path)


# the real thing, where it is


@pytest.mark.parametrize(
    "name", ["market751_mini", "market751_holdout", "cuhk03_np", "cuhk03_np_detected", "pets09_reentry"]
)
def test_real_counts(reidfast_data: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = data.load_dataset(name, reidfast_data)
    assert found.notes == () and len(found.query) and len(found.gallery)
    assert not set(found.train.pids) & set(found.query.pids)
    assert not set(found.query.paths) & set(found.gallery.paths)


def test_real_market_is_train_only(reidfast_data: Path) -> None:
    with pytest.warns(data.DataWarning, match="only train can be used"):
        found = data.load_dataset("market1501", reidfast_data)
    assert found.summary()["train"] == {"images": 12936, "ids": 751, "cameras": 6, "junk": 0, "distractors": 0}
    assert len(found.notes) == 1


def test_real_protocol_file_and_json_agree(reidfast_data: Path) -> None:
    mat, listed = data.load_dataset("cuhk03_np", reidfast_data), data.load_dataset("cuhk03_np_detected", reidfast_data)
    for split in ("train", "query", "gallery"):
        a, b = mat.splits[split], listed.splits[split]
        assert a.paths == b.paths and np.array_equal(a.pids, b.pids) and np.array_equal(a.camids, b.camids)


def test_real_tracklets(reidfast_data: Path) -> None:
    frames = data.load_dataset("market751_tracklets", reidfast_data).train
    lengths = np.bincount(frames.extra["tracklet"])
    assert len(lengths) == 6426 and (lengths >= 3).sum() == 1593 and (lengths >= 5).sum() == 274
    assert len(data.load_dataset("pets09_reentry", reidfast_data).info["tracklets"]) > 500
