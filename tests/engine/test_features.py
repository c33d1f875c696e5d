# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Feature files: round trips, foreign layout, damage of every kind."""

from __future__ import annotations

import re

import numpy as np
import pytest

from reidfast.engine import FeatureFile, FeatureFileError, FeatureTable, read_features, write_features


def table(n: int, size: int = 5, seed: int = 0, dtype: str = "float32") -> FeatureTable:
    rng = np.random.default_rng(seed)
    paths = tuple(f"p{seed}/ä {i}.jpg" for i in range(n))
    return FeatureTable(rng.normal(size=(n, size)).astype(dtype), rng.integers(-1, 9, n), rng.integers(0, 6, n), paths)


def assert_same(a: FeatureTable, b: FeatureTable) -> None:
    assert a.features.dtype == b.features.dtype and np.array_equal(a.features, b.features)
    assert np.array_equal(a.pids, b.pids) and np.array_equal(a.camids, b.camids) and a.paths == b.paths


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_round_trip(tmp_path, suffix, dtype):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="needs safetensors")
    file = FeatureFile({"gallery": table(7, seed=1, dtype=dtype), "query": table(3, seed=2, dtype=dtype)}, {"m": [1]})
    path = tmp_path / f"f{suffix}"
    write_features(path, file)
    first = path.read_bytes()
    found = read_features(path)
    assert set(found.splits) == {"query", "gallery"} and found.meta["m"] == [1]
    assert_same(found.query, file.query)
    assert_same(found.gallery, file.gallery)
    write_features(path, found)
    assert path.read_bytes() == first and [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_empty_split_and_no_paths(tmp_path, suffix):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="needs safetensors")
    bare = FeatureTable(np.ones((2, 3), np.float32), np.array([1, 2]), np.array([0, 0]))
    empty = FeatureTable(np.ones((0, 3), np.float32), np.empty(0, np.int64), np.empty(0, np.int64))
    write_features(tmp_path / f"f{suffix}", FeatureFile({"query": empty, "gallery": bare}))
    found = read_features(tmp_path / f"f{suffix}")
    assert len(found.query) == 0 and found.query.features.shape == (0, 3)
    assert_same(found.gallery, bare)


def test_interleaved_splits(tmp_path):
    np.savez(
        tmp_path / "f.npz",
        features=np.arange(8.0).reshape(4, 2),
        pids=[1, 2, 3, 4],
        camids=[0, 0, 1, 1],
        split=["gallery", "query", "gallery", "query"],
    )
    found = read_features(tmp_path / "f.npz")
    assert found.query.pids.tolist() == [2, 4] and found.gallery.features[:, 0].tolist() == [0, 4]


@pytest.mark.data
def test_stored_features_of_the_other_layout(reidfast_data):
    file = read_features(reidfast_data / "features" / "osnet_x0_25_msmt17__market751_holdout.npz")
    assert file.query.features.shape == (960, 512) and file.gallery.features.shape == (3321, 512)
    assert file.query.features.dtype == np.float16 and len(np.unique(file.query.pids)) == 251


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 7, 100, 0.5, 0.9, -1])
def test_cut_short(tmp_path, suffix, keep):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="needs safetensors")
    path = tmp_path / f"f{suffix}"
    write_features(path, FeatureFile({"gallery": table(50)}))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(FeatureFileError, match="not a feature file, or is damaged or cut short") as caught:
        read_features(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "f.npz"
    write_features(path, FeatureFile({"gallery": table(50)}))
    raw = bytearray(path.read_bytes())
    raw[700] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(FeatureFileError, match="CRC"):
        read_features(path)


MIXED = {"query": np.ones((1, 2)), "query_pid": [1], "query_cam": [1]}
MIXED |= {"gallery": np.ones((1, 3)), "gallery_pid": [1], "gallery_cam": [1]}
ONE = {"features": np.ones((1, 2)), "pids": [1], "camids": [1]}
BAD = [
    ({"weights": np.ones(3)}, "expected the columns features, pids, camids, found weights"),
    ({"features": np.ones((3, 2)), "pids": [1, 2, 3]}, "expected the columns camids"),
    ({"features": np.ones((3, 2)), "pids": [1, 2], "camids": [1, 2, 3]}, "pids of shape (3,) to match, got (2,)"),
    ({"features": np.ones(3), "pids": [1, 2, 3], "camids": [1, 2, 3]}, "features of shape (n, D), got (3,)"),
    ({"features": np.ones((1, 2), int), "pids": [1], "camids": [1]}, "floating-point features, got int64"),
    ({"features": np.ones((1, 2)), "pids": [1.5], "camids": [1]}, "integer pids, got float64"),
    ({**ONE, "split": ["test"]}, "expected splits among train, query, gallery"),
    ({**ONE, "paths": ["a", "b"]}, "expected 1 paths"),
    ({"query": np.ones((1, 2)), "query_pid": [1]}, "expected the columns query_cam beside query"),
    (MIXED, "one feature size D in every split, got {'query': 2, 'gallery': 3}"),
]


@pytest.mark.parametrize("columns,words", BAD, ids=range(len(BAD)))
def test_columns_that_do_not_agree(tmp_path, columns, words):
    np.savez(tmp_path / "f.npz", **columns)
    with pytest.raises(FeatureFileError, match=re.escape(words)) as caught:
        read_features(tmp_path / "f.npz")
    assert "f.npz" in str(caught.value)


def test_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_features(tmp_path / "f.npz")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_features(tmp_path)
    (tmp_path / "f.txt").write_text("x")
    with pytest.raises(FeatureFileError, match="ending in .npz or .safetensors, got f.txt"):
        read_features(tmp_path / "f.txt")
    with pytest.raises(FeatureFileError, match="has only gallery"):
        _ = FeatureFile({"gallery": table(2)}).query
