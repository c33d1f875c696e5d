# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from reidfast.data import Records, ReidData, concatenate, split_identities


def make(n: int, root: str = "/r", pid0: int = 0) -> Records:
    return Records(
        Path(root),
        tuple(f"a/{i}.jpg" for i in range(n)),
        np.arange(n) // 2 + pid0,
        np.arange(n) % 3,
        {"frame": 10 * np.arange(n)},
    )


def test_rows_and_columns() -> None:
    records = make(5)
    assert len(records) == 5 and records.pids.dtype == records.camids.dtype == np.int64
    assert records[3] == (Path("/r/a/3.jpg"), 1, 0) and records[-1].pid == 2
    assert records.absolute(2) == Path("/r/a/2.jpg")
    assert [r.camid for r in records] == [0, 1, 2, 0, 1]
    with pytest.raises(IndexError):
        records[5]
    with pytest.raises(ValueError):
        records.pids[0] = 7  # shared between tables, so read-only


def test_the_callers_array_is_copied() -> None:
    pids = np.zeros(2, np.int64)
    records = Records(Path("."), ("a", "b"), pids, pids)
    pids[0] = 9
    assert records.pids.tolist() == [0, 0]


@pytest.mark.parametrize(
    "index,expected",
    [([3, 0], [3, 0]), (np.array([True, False, False, False, True]), [0, 4]), (slice(1, None, 2), [1, 3]), ([], [])],
    ids=["indices", "mask", "slice", "nothing"],
)
def test_select(index: object, expected: list[int]) -> None:
    chosen = make(5).select(index)
    assert chosen.paths == tuple(f"a/{i}.jpg" for i in expected)
    assert chosen.extra["frame"].tolist() == [10 * i for i in expected]
    assert chosen.pids.tolist() == [i // 2 for i in expected]


def test_select_rejects_a_short_mask() -> None:
    with pytest.raises(ValueError, match=r"mask of shape \(5,\), got \(2,\)"):
        make(5).select(np.array([True, False]))


@pytest.mark.parametrize(
    "change,error,words",
    [
        ({"pids": [1]}, ValueError, "expected 2 values in pids to match paths, got 1"),
        ({"camids": [[1, 2]]}, ValueError, r"camids of shape \(n,\)"),
        ({"pids": [1.0, 2.0]}, TypeError, "integer pids, got float64"),
        ({"extra": {"frame": np.arange(3)}}, ValueError, "2 values in frame"),
    ],
)
def test_rejects(change: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Records(**{"root": Path("."), "paths": ("a", "b"), "pids": [1, 2], "camids": [0, 0], **change})


def test_labels_are_dense_and_ordered() -> None:
    labels, pids = Records(Path("."), ("a", "b", "c"), [30, 7, 30], [0, 0, 0]).labels()
    assert labels.tolist() == [1, 0, 1] and pids.tolist() == [7, 30]


def test_pickle() -> None:
    again = pickle.loads(pickle.dumps(make(3)))
    assert again.paths == make(3).paths and again.extra["frame"].tolist() == [0, 10, 20]


def test_concatenate_keeps_sources_apart() -> None:
    second = Records(Path("/r/b"), ("x.jpg", "y.jpg"), [-1, 1], [1, 2], {"frame": [5, 6], "other": [0, 0]})
    both = concatenate([make(4, "/r/a"), second])
    assert both.root == Path("/r") and both.paths[0] == "a/a/0.jpg" and both.paths[-1] == "b/y.jpg"
    assert both.pids.tolist() == [0, 0, 1, 1, -1, 3]  # 1 shifted past 0..1; junk stays junk
    assert both.camids.tolist() == [0, 1, 2, 0, 4, 5]
    assert sorted(both.extra) == ["frame", "source"] and both.extra["source"].tolist() == [0] * 4 + [1] * 2
    assert concatenate([make(4), second], offset=False).pids.tolist() == [0, 0, 1, 1, -1, 1]
    with pytest.raises(ValueError, match="at least one"):
        concatenate([])


def test_summary_sets_junk_and_distractors_apart() -> None:
    gallery = Records(Path("."), tuple("abcde"), [-1, 0, 0, 4, 5], [1, 1, 2, 3, 3])
    data = ReidData("x", make(4), Records.empty(), gallery, distractor=0)
    row = data.summary()["gallery"]
    assert row == {"images": 5, "ids": 2, "cameras": 3, "junk": 1, "distractors": 2}
    assert data.summary()["query"]["ids"] == 0
    assert "1 junk, 2 distractors" in data.describe()
    assert ReidData("x", make(4), make(0), gallery).summary()["gallery"]["ids"] == 3  # there 0 is an identity


def test_split_identities_follows_markets_rule() -> None:
    rng = np.random.default_rng(0)
    n = 600
    records = Records(Path("."), tuple(map(str, range(n))), rng.integers(-1, 40, n), rng.integers(0, 4, n))
    data = split_identities(records, test=0.25, seed=3)
    again = split_identities(records, test=0.25, seed=3)
    assert data.query.paths == again.query.paths
    assert data.query.paths != split_identities(records, test=0.25, seed=4).query.paths
    assert sum(map(len, data.splits.values())) == n
    assert not set(data.train.pids) & (set(data.gallery.pids) | set(data.query.pids))
    assert len(set(data.query.pids)) == 10 and (data.query.pids >= 0).all() and (data.train.pids >= 0).all()
    pairs = list(zip(data.query.pids, data.query.camids, strict=True))
    assert len(pairs) == len(set(pairs))
    for pid in set(data.query.pids):
        rows = records.select(records.pids == pid)
        assert (data.query.pids == pid).sum() == len(set(rows.camids)) > 1
