# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Synthetic walks: random access, known quality, clean renders, and a data set of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from reidfast.data import Tracklets, World, load_dataset
from reidfast.data.synthetic import EVENTS, PARTS, SyntheticTracklets, Track, write_synthetic_tracklets

WORLD = World(seed=3, difficulty=0.4, height=64, width=32)
SMALL = {"ids": 4, "frames": 5, "height": 64, "width": 32}


def test_random_access() -> None:
    forward = Track(WORLD, 5, 2, length=9, trouble=0.6)
    one = [forward.frame(i) for i in range(9)]
    again = Track(WORLD, 5, 2, length=9, trouble=0.6)
    for i in (8, 3, 0):
        two = again.frame(i)
        assert two.photograph.jpeg == one[i].photograph.jpeg and np.array_equal(two.clean, one[i].clean)
    assert len({f.photograph.jpeg for f in one}) == 9 and again.frame(-1).photograph.jpeg == one[8].photograph.jpeg
    others = [Track(WORLD, 5, 2, 1, 9), Track(WORLD, 5, 1, 0, 9), Track(WORLD, 6, 2, 0, 9)]
    assert all(t.frame(0).photograph.jpeg != one[0].photograph.jpeg for t in others)
    with pytest.raises(IndexError):
        forward.frame(9)


def test_trouble_is_the_share_of_bad_frames() -> None:
    for trouble in (0.0, 0.3, 0.7):
        tracks = [Track(WORLD, pid, 1, length=60, trouble=trouble) for pid in range(150)]
        share = np.mean([t.event(i) is not None for t in tracks for i in range(60)])
        assert abs(share - trouble) < 0.06
    kinds = {e.kind for t in tracks for e in t.happenings}
    assert kinds == set(EVENTS)
    only = [Track(WORLD, pid, 1, length=60, trouble=0.5, events=("blur",)) for pid in range(5)]
    assert {e.kind for t in only for e in t.happenings} == {"blur"}


def test_frames_without_trouble_are_clean() -> None:
    for f in (Track(WORLD, 2, 1, length=4, trouble=0.0).frame(i) for i in range(4)):
        assert f.event == "none" and f.overlap == f.sharpness == 1.0 and f.visible > 0.93
        assert f.clean is f.photograph.image and f.quality > 0.93


@pytest.mark.parametrize("kind", EVENTS)
def test_every_event_lowers_the_quality_it_should(kind: str) -> None:
    worst = []
    for pid in range(1, 7):
        track = Track(WORLD, pid, 1, length=12, trouble=0.9, events=(kind,))
        frames = [f for f in map(track.frame, range(12)) if f.event == kind]
        worst.append(min(frames, key=lambda f: f.quality))
    for f in worst:
        assert f.clean.shape == f.image.shape == (64, 32, 3) and not np.array_equal(f.clean, f.image)
        assert (f.clean_parts > 0).sum() > 0
        if kind == "blur":
            assert f.sharpness < 0.5 and f.overlap == 1 and f.visible > 0.93
            edges = [np.abs(np.diff(p.astype(float), axis=0)).mean() for p in (f.image, f.clean)]
            assert edges[0] < 0.75 * edges[1]
        elif kind in ("cut", "shift"):
            assert f.overlap < 0.8 and f.sharpness == 1
        else:
            assert f.overlap == f.sharpness == 1 and f.photograph.occluder == kind
            assert (f.photograph.mask <= (f.clean_parts > 0)).all()  # an occluder only takes away
    assert np.mean([f.quality for f in worst]) < 0.75


def test_the_clean_render_is_the_same_moment() -> None:
    """Where the occluder is not, the two pictures agree up to JPEG."""
    track = Track(WORLD, 1, 1, length=12, trouble=0.9, events=("person",))
    f = min((track.frame(i) for i in range(12)), key=lambda f: f.visible)
    both = (f.photograph.parts > 0) & (f.photograph.parts == f.clean_parts)
    gap = np.abs(f.image.astype(float) - f.clean).mean(2)
    assert f.visible < 0.7 and both.sum() > 20 and np.median(gap[both]) < 16 and gap[~both].max() > 40


def test_people_walk() -> None:
    """Legs move from frame to frame and come back after a cycle; the background moves against the walk."""
    track = Track(WORLD, 4, 1, length=30, trouble=0.0)
    legs = PARTS.index("legs") + 1
    shapes = [track.frame(i).photograph.parts == legs for i in range(16)]
    changes = [np.mean(shapes[0] ^ s) / max(shapes[0].mean(), 1e-9) for s in shapes[1:]]
    assert max(changes) > 1.8 * min(changes[6:]) or max(changes) > 0.5


@pytest.mark.parametrize(
    "change,words",
    [({"length": 0}, "length >= 1"), ({"trouble": 1.5}, r"trouble in \[0, 1\]"), ({"events": ("rain",)}, "got rain")],
)
def test_track_rejects(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Track(WORLD, 1, 1, **change)


def test_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset("synthetic_tracklets", tmp_path / "s", **SMALL)
    spec = data.info["synthetic_tracklets"]
    assert [len(t) for t in data.splits.values()] == [20, 20, 20]
    assert (
        data.summary()["train"]["tracklets"] == 4 and set(data.train.pids) == {1, 2} and set(data.query.pids) == {3, 4}
    )
    for records in (data.train, data.query):
        for row in (0, 7, 19):
            key = int(records.pids[row]), int(records.camids[row]), 0
            frame = spec.track(*key).frame(int(records.extra["frame"][row]))
            assert records.absolute(row).read_bytes() == frame.photograph.jpeg
            assert records.extra["event"][row] == frame.event
            for name in ("quality", "visible", "overlap", "sharpness"):
                assert abs(records.extra[name][row] - getattr(frame, name)) < 1e-3
            np.testing.assert_allclose(records.extra["visibility"][row], frame.photograph.visibility, atol=1e-3)
    assert Tracklets.of(data.gallery).lengths.tolist() == [5, 5, 5, 5]
    monkeypatch.setattr("reidfast.data.synthetic.walks._render_walk", lambda t: pytest.fail("rendered again"))
    again = load_dataset("synthetic_tracklets", tmp_path / "s")
    assert again.train.paths == data.train.paths and again.info["synthetic_tracklets"] == spec
    with pytest.raises(FileExistsError, match="frames=5, not 6"):
        write_synthetic_tracklets(tmp_path / "s", **{**SMALL, "frames": 6})


def test_interrupted_writing_goes_on(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 10:
            raise Stop

    with pytest.raises(Stop):
        write_synthetic_tracklets(tmp_path / "s", progress=stop, **SMALL)
    assert not (tmp_path / "s/synthetic_tracklets.json").exists()
    data = write_synthetic_tracklets(tmp_path / "s", **SMALL)
    whole = write_synthetic_tracklets(tmp_path / "t", workers=2, **SMALL)
    for a, b in zip(data.splits.values(), whole.splits.values(), strict=True):
        assert all(a.absolute(i).read_bytes() == b.absolute(i).read_bytes() for i in range(len(b)))
    data.train.absolute(3).unlink()
    write_synthetic_tracklets(tmp_path / "s", **SMALL)
    assert data.train.absolute(3).is_file()
    assert json.loads((tmp_path / "s/synthetic_tracklets.json").read_text())["frames"] == 5


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(FileExistsError, match="not empty and not made here"):
        write_synthetic_tracklets(tmp_path, **SMALL)
    with pytest.raises(ValueError, match="got people"):
        write_synthetic_tracklets(tmp_path / "s", people=3)
    with pytest.raises(ValueError, match="frames of at least 1"):
        SyntheticTracklets(frames=0)
