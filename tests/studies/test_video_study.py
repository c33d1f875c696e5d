# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The study of DRSTA and RRU + STIM, on made-up maps: its measures by hand, and that it runs, resumes and repeats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("studies.video", reason="the studies are beside the checkout, not in the wheel")

from studies import video

CHANNELS, PEOPLE, HALVES = 6, 16, 4  # two walks of two halves for each person


def write(folder: Path, name: str, seed: int, known: bool = False) -> None:
    """Maps that show who it is, except in three frames of each half, which show somebody else."""
    rng = np.random.default_rng(seed)
    n = PEOPLE * HALVES * video.HALF
    pids = np.repeat(np.arange(PEOPLE), HALVES * video.HALF)
    look = rng.standard_normal((PEOPLE, CHANNELS, *video.GRID))
    clean = look[pids] + 0.3 * rng.standard_normal((n, CHANNELS, *video.GRID))
    hidden = np.zeros((n // video.HALF, video.HALF), bool)
    for row in hidden:
        row[(start := rng.integers(0, 5)) : start + 3] = True
    maps = np.where(hidden.reshape(-1, 1, 1, 1), look[(pids + 1) % PEOPLE], clean)
    arrays = {"maps": maps.astype(np.float16), "pids": pids, "camids": np.zeros(n, np.int64)}
    if known:
        full = np.ones((n, *video.GRID), np.float32)
        parts = np.full((n, len(video.PARTS), *video.GRID), 1 / len(video.PARTS), np.float32)
        arrays |= {"clean": clean.astype(np.float16), "person": full, "seen": full, "part": parts}
        arrays["mask"] = full * hidden.reshape(-1, 1, 1)
    np.savez(folder / f"{name}.npz", **arrays)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    for seed, name in enumerate(("train", "more")):
        write(folder, name, seed)
        for k in range(1, video.STRANGERS):
            write(folder, f"{name}-{k}", 10 * seed + k)
    write(folder, "gallery", 2, known=True)
    write(folder, "validation", 3, known=True)
    return folder


def test_pairs_by_hand() -> None:
    value = np.array([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    good, bad = np.array([[1, 0, 1], [1, 0, 0]], bool), np.array([[0, 1, 0], [0, 1, 0]], bool)
    assert video.ordered_pairs(value, good, bad) == (3, 2.5)


def test_halves_of_walks_are_searched_for(cache: Path) -> None:
    tracks = video.Tracks(cache / "gallery.npz")
    walks = torch.arange(len(tracks.pids)) // 2
    right = video.ranked(torch.nn.functional.one_hot(walks).double() + 0.01, tracks)
    assert right["rank1"] == right["mAP"] == 1
    # another walk of the same person is no mistake, somebody else's is one
    same = video.ranked(torch.nn.functional.one_hot(walks // 2).double() + 0.01, tracks)
    wrong = video.ranked(
        torch.nn.functional.one_hot((walks + torch.from_numpy(tracks.halves) * 2) % walks.max()).double() + 0.01, tracks
    )
    assert same["mAP"] == 1 and wrong["mAP"] < 0.5


def test_tracks_join_people_and_strangers(cache: Path) -> None:
    training = video.Training(cache)
    tracks, alone = training({"method": "drsta"}), training({"method": "rru_stim"})
    assert len(np.unique(tracks.pids)) == 2 * PEOPLE and len(np.unique(alone.pids)) == PEOPLE
    assert training({"method": "drsta"}) is tracks and not alone.others
    assert len(tracks.others) == video.STRANGERS - 1 and all(x.shape == tracks.maps.shape for x in tracks.others)
    rows = np.arange(0, len(tracks.pids), 5)
    drawn = video.clips_of(tracks, rows, {"method": "rru_stim"}, np.random.default_rng(0))
    from_each = [
        sum(bool((clip == x[r].float()).all()) for x in [tracks.maps, *tracks.others])
        for clip, r in zip(drawn, rows, strict=True)
    ]
    assert from_each == [1] * len(rows)  # each clip is one of the versions, whole
    assert (
        sum(bool((clip == tracks.maps[r].float()).all()) for clip, r in zip(drawn, rows, strict=True)) < len(rows) / 2
    )


@pytest.mark.parametrize("clip", [2, 4])
def test_clips_and_shuffling(cache: Path, clip: int) -> None:
    tracks, arm = video.Tracks(cache / "train.npz"), {"method": "rru_stim", "clip": clip}
    where = torch.arange(video.HALF, dtype=torch.float16).view(1, -1, 1, 1, 1)
    tracks.maps = where.expand_as(tracks.maps).clone()
    for shuffle in (False, True):
        clips = video.clips_of(tracks, np.arange(64), arm | {"shuffle": shuffle}, np.random.default_rng(0))[
            :, :, 0, 0, 0
        ]
        assert clips.shape == (64, clip) and (clips.sort(1).values.diff(dim=1) == 1).all()
        assert bool((clips.diff(dim=1) == 1).all()) == (not shuffle)


def test_the_slow_part_moves_less(cache: Path) -> None:
    tracks = video.Tracks(cache / "train.npz")
    arm = {"method": "drsta", "steps": (0, 3), "weight": 0.0}
    start, _ = video.train_drsta(arm | {"rate": 0.0}, tracks, 0)
    moved = []
    for slow in (1.0, 0.0):
        model, _ = video.train_drsta(arm | {"slow": slow}, tracks, 0)
        moved.append(float((model.enhance.weight - start.enhance.weight).abs().max().detach()))
        assert model.time.weight.abs().max() > 0  # the temporal attention learns in both
    assert moved[0] > 0 and moved[1] == 0


def run(command: str, cache: Path, out: Path, *more: str) -> None:
    video.study.main([command, *more, "--cache", str(cache), "--out", str(out)])


def test_runs_resumes_and_repeats(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, arm in video.ARMS.items():
        monkeypatch.setitem(video.ARMS, name, arm | {"steps": (4, 6) if arm["method"] == "drsta" else 3})
    arms = ["drsta", "drsta no penalty", "temporal only", "average (oim)", "average", "rru alone"]
    run("run", cache, tmp_path / "a", "--seeds", "0", "--arms", *arms)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}
    assert len(stamps) == len(arms)
    run("run", cache, tmp_path / "a", "--seeds", "0", "--arms", *arms)
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}  # taken from the files
    run("run", cache, tmp_path / "b", "--seeds", "0", "--arms", "drsta", "rru alone")
    for name in ("drsta", "rru alone"):
        one, two = (json.loads((tmp_path / d / f"{name}-0.json").read_text()) for d in "ab")
        assert one.pop("seconds") and two.pop("seconds") and one == two
    found = json.loads((tmp_path / "a" / "drsta-0.json").read_text())
    assert {"overlap", "auc_region", "auc_part", "auc_frame"} <= found.keys() and found["pairs"][3] > 0
    run("run", cache, tmp_path / "a", "--seeds", "1", "--arms", "average")
    run("tune", cache, tmp_path / "a", 'three={"model": {"maps": 3}, "steps": [2, 2]}', "--seeds", "0")
    run("report", cache, tmp_path / "a", "--json", f"{tmp_path}/report.json")
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["summary"]["average"]["seeds"] == [0, 1] and told["summary"]["rru alone"]["seeds"] == [0]
    difference = told["mAP difference in %, bootstrap over identities"]["rru alone - average"]
    assert list(difference["each seed"]) == ["0"]  # compared on the seed that both have
    low, high = difference["mean, low, high"][1:]
    assert low <= difference["each seed"]["0"] <= high
    assert told["DRSTA's settings tried on validation people"]["three, seed 0"]["settings"]["model"] == {"maps": 3}
