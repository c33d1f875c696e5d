# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Tables of tracklets, which of their frames are taken, and batches of sets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from reidfast import ops
from reidfast.data import EvalTransform, IdentitySampler, Records, TrackletDataset, Tracklets, TripletSetSampler
from reidfast.data.clips import (
    all_frames,
    chunk_frames,
    clip_frames,
    collate_sets,
    set_frames,
)
from reidfast.data.transforms import TrainTransform


def table(root: Path = Path(".")) -> Records:
    """Three tracklets, shuffled: 7 (pid 1, cam 1), 3 (pid 1, cam 2), 5 (pid 2, cam 1)."""
    tracklet = [7, 3, 7, 5, 3, 7, 5, 5, 5]
    frame = [2, 0, 0, 3, 1, 1, 0, 2, 1]
    pids = [{7: 1, 3: 1, 5: 2}[t] for t in tracklet]
    camids = [{7: 1, 3: 2, 5: 1}[t] for t in tracklet]
    paths = tuple(f"t{t}f{f}.png" for t, f in zip(tracklet, frame, strict=True))
    return Records(root, paths, pids, camids, {"tracklet": np.array(tracklet), "frame": np.array(frame)})


def test_of_groups_and_sorts() -> None:
    t = Tracklets.of(table())
    assert t.extra["tracklet"].tolist() == [3, 5, 7] and t.lengths.tolist() == [2, 4, 3]
    assert t.pids.tolist() == [1, 2, 1] and t.camids.tolist() == [2, 1, 1] and t.offsets.tolist() == [0, 2, 6, 9]
    assert [t.frames.paths[r] for r in t[1].rows] == ["t5f0.png", "t5f1.png", "t5f2.png", "t5f3.png"]
    assert t.records().paths[:3] == ("t3f0.png", "t3f1.png", "t5f0.png")
    assert t[-1].pid == 1 and len(list(t)) == 3
    labels, pids = t.labels()
    assert labels.tolist() == [0, 1, 0] and pids.tolist() == [1, 2]


def test_any_columns_make_sets() -> None:
    r = table()
    both = Tracklets.of(r, ("pid", "camid"))
    assert sorted(zip(both.pids.tolist(), both.camids.tolist(), both.lengths.tolist(), strict=True)) == [
        (1, 1, 3),
        (1, 2, 2),
        (2, 1, 4),
    ]
    assert Tracklets.of(r, least=3).lengths.tolist() == [4, 3]
    assert len(Tracklets.of(Records.empty().with_extra(tracklet=np.empty(0, np.int64)))) == 0
    with pytest.raises(ValueError, match="expected one of the cameras in each set, got two in that of t"):
        Tracklets.of(r, "pid")
    with pytest.raises(ValueError, match="a column among pid, camid, tracklet, frame, got 'walk'"):
        Tracklets.of(r, "walk")


def test_select_keeps_the_frames() -> None:
    t = Tracklets.of(table())
    some = t.select([2, 0])
    assert some.frames is t.frames and some.pids.tolist() == [1, 1] and some.extra["tracklet"].tolist() == [7, 3]
    assert some.rows.tolist() == [*t[2].rows.tolist(), *t[0].rows.tolist()]
    assert len(t.select(t.camids == 1)) == 2 and len(t.select([])) == 0 and len(t.select(slice(1, None))) == 2
    first = t.replace_rows([x.rows[:1] for x in t])
    assert first.lengths.tolist() == [1, 1, 1] and first.pids.tolist() == t.pids.tolist()
    with pytest.raises(ValueError, match=r"mask of shape \(3,\)"):
        t.select(np.ones(2, bool))


@pytest.mark.parametrize(
    "change,words",
    [
        ({"offsets": [0, 2]}, "expected 4 offsets"),
        ({"offsets": [0, 5, 2, 9]}, "rise from 0 to 9"),
        ({"rows": [99, *range(8)]}, r"rows in 0\.\.8, got 0\.\.99"),
        ({"camids": [1]}, "3 values in camids"),
        ({"pids": [1.0, 2.0, 3.0]}, "integer pids"),
    ],
)
def test_rejects(change: dict, words: str) -> None:
    r = table()
    good = {"rows": list(range(9)), "offsets": [0, 2, 4, 9], "pids": [1, 2, 3], "camids": [1, 1, 1]}
    with pytest.raises(ValueError, match=words):
        Tracklets(r, **{**good, **change})


def test_chunks_cover_the_tracklet() -> None:
    """Chunk k is [floor(kT/N), floor((k+1)T/N)); an empty one repeats floor(kT/N)."""
    rng = np.random.default_rng(0)
    for length in (1, 2, 5, 6, 7, 29, 920):
        for n in (1, 4, 6):
            first = chunk_frames(length, n)
            assert first.tolist() == [k * length // n for k in range(n)]
            edges = np.arange(n + 1) * length // n
            draws = np.array([chunk_frames(length, n, rng) for _ in range(200)])
            assert (draws >= edges[:-1]).all() and (draws < np.maximum(edges[1:], edges[:-1] + 1)).all()
            if length >= 3 * n:  # every frame of a chunk comes up
                assert len(np.unique(draws)) > 0.6 * min(length, 200)
    assert chunk_frames(12, 3, at="middle").tolist() == [1, 5, 9]


def test_other_choices() -> None:
    rng = np.random.default_rng(1)
    for length in (3, 8, 20):
        drawn = set_frames(length, 8, rng)
        assert len(drawn) == 8 and (np.diff(drawn) >= 0).all()
        assert np.bincount(drawn, minlength=length).max() == -(-8 // length)
        clip = clip_frames(length, 8, rng)
        assert ((np.diff(clip) % length) == 1 % length).all()
    assert clip_frames(5, 8).tolist() == [0, 1, 2, 3, 4, 0, 1, 2] and clip_frames(20, 4, stride=3).tolist() == [
        5,
        8,
        11,
        14,
    ]
    assert {int(clip_frames(10, 4, rng)[0]) for _ in range(200)} == set(range(7))
    assert all_frames(5).tolist() == [0, 1, 2, 3, 4] and all_frames(9, 3).tolist() == [0, 3, 6]
    for choose in (set_frames, chunk_frames, clip_frames):
        with pytest.raises(ValueError, match="at least 1 frame"):
            choose(0, 3)


@pytest.fixture
def pictures(trees: SimpleNamespace, tmp_path: Path) -> Tracklets:
    r = table(tmp_path)
    trees.touch_images(tmp_path, r.paths)
    return Tracklets.of(r)


def test_ragged_batches_feed_set_pool(pictures: Tracklets) -> None:
    dataset = TrackletDataset(pictures, EvalTransform(16, 8), choose="all", n=0, train=False)
    (batch,) = DataLoader(dataset, batch_size=3, collate_fn=collate_sets)
    assert batch.images.shape == (9, 3, 16, 8) and batch.offsets.tolist() == [0, 2, 6, 9]
    assert (
        batch.labels.tolist() == [1, 2, 1]
        and batch.camids.tolist() == [2, 1, 1]
        and batch.tracklets.tolist() == [0, 1, 2]
    )
    assert batch.rows.tolist() == pictures.rows.tolist()
    pooled = ops.set_pool(batch.images.flatten(1), torch.ones(9), batch.offsets)
    wanted = torch.stack([batch.images[a:b].flatten(1).mean(0) for a, b in ((0, 2), (2, 6), (6, 9))])
    torch.testing.assert_close(pooled, wanted)
    with pytest.raises(ValueError, match=r"one size for a dense batch, got \[2, 4, 3\]"):
        batch.dense()


def test_drawn_frames_depend_on_seed_epoch_and_copy(pictures: Tracklets) -> None:
    def rows(seed: int = 0, epoch: int = 0) -> list[list[int]]:
        dataset = TrackletDataset(pictures, EvalTransform(16, 8), choose="set", n=2, seed=seed)
        dataset.set_epoch(epoch)
        return [dataset.frames(i).tolist() for i in range(3 * 6)]

    assert rows() == rows() and rows() != rows(seed=1) and rows() != rows(epoch=1)
    copies = rows()[1::3]
    assert len({tuple(r) for r in copies}) > 1 and {x for r in copies for x in r} <= set(pictures[1].rows.tolist())
    fixed = TrackletDataset(pictures, EvalTransform(16, 8), choose="chunks", n=2, train=False)
    assert fixed.frames(1).tolist() == pictures[1].rows[[0, 2]].tolist()
    with pytest.raises(IndexError, match=r"0\.\.2, got 3"):
        fixed[3]


def test_a_clip_is_flipped_as_a_whole(pictures: Tracklets) -> None:
    gradient = torch.arange(8, dtype=torch.float32)

    class Lines(TrainTransform):
        def __call__(self, image, rng):  # type: ignore[no-untyped-def]
            return gradient.flip(0) if rng.random() < 0.5 else gradient

    lines = Lines(16, 8)
    same = TrackletDataset(pictures, lines, choose="chunks", n=6)
    each = TrackletDataset(pictures, lines, choose="chunks", n=6, same=False)
    kinds = [len(same[i][0].unique(dim=0)) for i in range(24)]
    assert set(kinds) == {1} and len({same[i][0][0, 0].item() for i in range(24)}) == 2
    assert max(len(each[i][0].unique(dim=0)) for i in range(24)) == 2


def test_identity_sampler_works_over_tracklets(pictures: Tracklets) -> None:
    dataset = TrackletDataset(pictures, EvalTransform(16, 8), choose="clip", n=2)
    sampler = IdentitySampler(pictures.pids, 2, 3, mark_repeats=True)
    for batch in DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_sets):
        assert batch.dense().shape == (6, 2, 3, 16, 8)
        assert torch.bincount(batch.labels).tolist() == [0, 3, 3]


def test_triplets_of_sets() -> None:
    pids, camids = [1, 1, 2, 2, 2, 3, -1], [1, 2, 1, 1, 2, 1, 1]
    sampler = TripletSetSampler(pids, camids, 4, steps=50, seed=3)
    drawn = np.array(list(sampler)).reshape(-1, 3)
    ids = np.array(pids)[drawn % 7]
    assert len(drawn) == 200 and (ids[:, 0] == ids[:, 1]).all() and (ids[:, 0] != ids[:, 2]).all() and (ids > 0).all()
    assert set(np.unique(ids[:, 0])) == {1, 2, 3}
    for batch in drawn.reshape(50, 12):
        assert len(set(batch.tolist())) == 12  # a tracklet that comes twice is marked
    of_two = drawn[ids[:, 0] == 2][:, 0] % 7
    assert 0.35 < np.mean(of_two == 4) < 0.65  # cameras first: tracklet 4 is alone in its camera
    assert (drawn[:, 0] % 7 == drawn[:, 1] % 7).any()
    other = TripletSetSampler(pids, camids, 4, steps=50, other_tracklet=True)
    pairs = np.array(list(other)).reshape(-1, 3) % 7
    assert all(a != p or a == 5 for a, p in pairs[:, :2])
    again = TripletSetSampler(pids, camids, 4, steps=50, seed=3)
    again.set_epoch(1)
    assert list(again) != list(sampler)
    again.set_epoch(0)
    assert list(again) == list(sampler)
    with pytest.raises(ValueError, match="at least 2 identities, got 1"):
        TripletSetSampler([1, 1], [1, 2])


def test_triplets_are_shared_between_ranks() -> None:
    pids, camids = [1, 1, 2, 2], [1, 2, 1, 2]
    one = TripletSetSampler(pids, camids, 4, steps=5, seed=1, rank=0, world=1)
    two = [TripletSetSampler(pids, camids, 2, steps=5, seed=1, rank=r, world=2) for r in (0, 1)]
    assert list(one) == [a + b for a, b in zip(*two, strict=True)]
