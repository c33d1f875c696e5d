# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from reidfast.data.samplers import IdentitySampler, PairSampler, ShuffleSampler, shard_indices


def make(ids: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Identities with 1 to 20 images each on 4 cameras, rows in no order, some junk."""
    rng = np.random.default_rng(seed)
    pids = np.concatenate([np.repeat(np.arange(ids) * 3 + 5, rng.integers(1, 21, ids)), np.full(7, -1)])
    rng.shuffle(pids)
    return pids, rng.integers(0, 4, len(pids))


PIDS, CAMIDS = make()


def batches(p: int = 4, k: int = 4, epoch: int = 0, world: int = 1, **options: object) -> np.ndarray:
    """[rank, step, p * k]"""
    samplers = [IdentitySampler(PIDS, p, k, rank=r, world=world, **options) for r in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    lists = [list(s) for s in samplers]
    assert len({len(x) for x in lists}) == 1 and all(len(s) == len(x) for s, x in zip(samplers, lists, strict=True))
    return np.array(lists)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("steps", [None, 25])
@pytest.mark.parametrize("aware", [False, True])
def test_p_by_k(world: int, steps: int | None, aware: bool) -> None:
    out = batches(world=world, steps=steps, camids=CAMIDS, camera_aware=aware)
    assert out.shape[1:] == (steps or out.shape[1], 16) and out.shape[1] >= 2
    for step in range(out.shape[1]):
        pids = PIDS[out[:, step]].reshape(world * 4, 4)
        assert (pids == pids[:, :1]).all() and (pids >= 0).all()
        assert len(set(pids[:, 0])) == world * 4  # nobody twice, on no two ranks


def test_ranks_divide_one_schedule() -> None:
    """Two ranks of P = 4 see, put together, what one rank of P = 8 sees."""
    two, one = batches(p=4, world=2), batches(p=8, world=1)[0]
    assert np.array_equal(np.concatenate(list(two), 1), one)


def test_epoch_uses_each_group_once() -> None:
    out = batches(p=2)[0]
    used = Counter(out.reshape(-1).tolist())
    counts = Counter(PIDS[PIDS >= 0].tolist())
    for row, times in used.items():
        if counts[PIDS[row]] >= 4:
            assert times == 1
    groups = Counter(PIDS[out.reshape(-1, 4)[:, 0]].tolist())
    assert all(groups[pid] <= max(1, n // 4) for pid, n in counts.items())
    left = [max(1, n // 4) - groups[pid] for pid, n in counts.items()]
    assert sum(x > 0 for x in left) < 2  # the epoch ended because fewer than P identities had groups left
    short = [pid for pid, n in counts.items() if n < 4]
    for rows in out.reshape(-1, 4):
        pid = PIDS[rows[0]]
        assert len(set(rows)) == min(4, counts[pid]) or pid in short
        if pid in short:
            assert set(rows) == set(np.flatnonzero(pid == PIDS))  # all it has, then some again


def test_all_identities_are_drawn_equally() -> None:
    """With fixed steps every round shows each identity once: counts differ by at most one."""
    out = batches(p=4, steps=37)[0]
    seen = Counter(PIDS[out.reshape(-1, 4)[:, 0]].tolist())
    assert len(seen) == 30 and max(seen.values()) - min(seen.values()) <= 1


def test_first_step_is_uniform_over_identities() -> None:
    sampler = IdentitySampler(PIDS, 5, 2)
    seen: Counter = Counter()
    for epoch in range(300):
        seen.update(PIDS[sampler.batches(epoch)[0].reshape(5, 2)[:, 0]].tolist())
    share = np.array([seen[p] for p in sorted(set(PIDS[PIDS >= 0].tolist()))]) / 300
    assert abs(share.mean() - 5 / 30) < 1e-9 and share.min() > 0.08 and share.max() < 0.26


def test_images_are_uniform_over_epochs() -> None:
    pid = next(p for p, n in Counter(PIDS[PIDS >= 0].tolist()).items() if n >= 15)
    rows = np.flatnonzero(pid == PIDS)
    sampler = IdentitySampler(PIDS, 2, 4)
    seen: Counter = Counter()
    for epoch in range(60):
        first = next(g for g in sampler.batches(epoch).reshape(-1, 4) if PIDS[g[0]] == pid)
        seen.update(first.tolist())
    assert set(seen) == set(rows.tolist()) and max(seen.values()) < 4 * (240 / len(rows))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    a, b, c = batches(epoch=0), batches(epoch=1), batches(epoch=0, seed=1)
    assert np.array_equal(a, batches(epoch=0))
    assert not np.array_equal(a[:, :3], b[:, :3]) and not np.array_equal(a[:, :3], c[:, :3])


def test_camera_aware_groups_hold_more_cameras() -> None:
    def cameras(aware: bool) -> float:
        groups = batches(camids=CAMIDS, camera_aware=aware, steps=200)[0].reshape(-1, 4)
        return float(np.mean([len(set(CAMIDS[g])) for g in groups]))

    assert cameras(True) > cameras(False) + 0.2
    pids, camids = np.repeat([1, 2], 12), np.tile(np.repeat(np.arange(4), 3), 2)
    for group in IdentitySampler(pids, 2, 4, camids=camids, camera_aware=True).batches().reshape(-1, 4):
        assert set(camids[group]) == {0, 1, 2, 3}  # 3 images on each of 4 cameras: every group has all four


def test_shared_identities() -> None:
    pids = np.repeat(np.arange(5), 8)
    with pytest.raises(ValueError, match="at least 4 x 2 ranks identities, got 5; share_identities=True"):
        IdentitySampler(pids, 4, 2, rank=0, world=2)
    for steps in (None, 9):
        ranks = [
            IdentitySampler(pids, 4, 2, share_identities=True, steps=steps, rank=r, world=2).batches() for r in (0, 1)
        ]
        assert ranks[0].shape == ranks[1].shape and len(ranks[0]) > 1
        for out in ranks:
            for batch in out:
                assert len(set(pids[batch])) == 4
        assert any(set(pids[a]) & set(pids[b]) for a, b in zip(*ranks, strict=True))


@pytest.mark.parametrize("step", [0, 1, 3])
def test_resume_in_the_middle(step: int) -> None:
    whole = IdentitySampler(PIDS, 4, 4, seed=3)
    whole.set_epoch(2)
    expected = list(whole)
    first = IdentitySampler(PIDS, 4, 4, seed=3)
    first.set_epoch(2)
    taken = list(itertools.islice(iter(first), step))
    later = IdentitySampler(PIDS, 4, 4, seed=3)
    later.load_state_dict(first.state_dict(step))
    assert len(later) == len(expected) - step
    later.set_epoch(2)  # an engine says so before each epoch; it must not rewind
    assert taken + list(later) == expected
    assert list(later) == expected  # only the one iteration was shortened
    later.set_epoch(3)
    assert len(later) == len(later.batches())


def test_state_of_another_seed_is_refused() -> None:
    sampler = IdentitySampler(PIDS, 4, 4, seed=3)
    with pytest.raises(ValueError, match="state of seed 3, got 4"):
        sampler.load_state_dict({"epoch": 0, "step": 0, "seed": 4})
    with pytest.raises(ValueError, match="expected step in 0.."):
        sampler.load_state_dict({"epoch": 0, "step": 10**6, "seed": 3})


def test_mark_repeats_gives_each_copy_its_own_number() -> None:
    plain, marked = batches(steps=60)[0], batches(steps=60, mark_repeats=True)[0]
    assert np.array_equal(marked % len(PIDS), plain)
    assert len(np.unique(marked)) == marked.size and len(np.unique(plain)) < plain.size
    assert marked.min() < len(PIDS)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"p": 31}, "at least 31 identities, got 30"),
        ({"k": 0}, "p, k and steps of at least 1, got 4, 0, None"),
        ({"steps": 0}, "of at least 1"),
        ({"camera_aware": True}, "expected camids with camera_aware"),
        ({"camids": [1, 2]}, r"camids of shape \(\d+,\), got \(2,\)"),
        ({"rank": 0}, "both rank and world"),
        ({"rank": 2, "world": 2}, r"rank in 0..1, got 2"),
        ({"pids": [0.5]}, "integer pids"),
    ],
)
def test_rejects(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        IdentitySampler(**{"pids": PIDS, "p": 4, "k": 4, **change})


def test_in_a_loader() -> None:
    sampler = IdentitySampler(PIDS, 4, 4)
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(PIDS))
    seen = [pids for (pids,) in torch.utils.data.DataLoader(dataset, batch_sampler=sampler)]
    assert len(seen) == len(sampler) and all(len(set(p.tolist())) == 4 and len(p) == 16 for p in seen)


@pytest.mark.parametrize("n,batch,world", [(100, 8, 1), (100, 8, 3), (7, 7, 1), (50, 4, 2)])
def test_shuffle(n: int, batch: int, world: int) -> None:
    ranks = [ShuffleSampler(n, batch, rank=r, world=world, seed=1) for r in range(world)]
    tables = [s.batches(4) for s in ranks]
    together = np.concatenate(tables, 1).reshape(-1)
    assert len(set(together.tolist())) == len(together) == n // (batch * world) * batch * world
    assert not np.array_equal(ranks[0].batches(5), tables[0]) or n == batch
    filled = np.concatenate(
        [ShuffleSampler(n, batch, rank=r, world=world, seed=1, drop_last=False).batches(4) for r in range(world)], 1
    )
    assert set(filled.reshape(-1).tolist()) == set(range(n))
    assert np.array_equal(filled[: len(tables[0])], np.concatenate(tables, 1))


def test_shuffle_rejects() -> None:
    with pytest.raises(ValueError, match="at least 16 rows for batches of 8, got 15"):
        ShuffleSampler(15, 8, rank=0, world=2)


def test_shard() -> None:
    for n, world in ((10, 3), (2, 4), (0, 2)):
        parts = [shard_indices(n, r, world) for r in range(world)]
        assert [i for part in parts for i in part] == list(range(n))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(ValueError, match="rank in 0..1"):
        shard_indices(3, 2, 2)


def test_ranks_come_from_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    assert (IdentitySampler(PIDS, 4, 4).rank, IdentitySampler(PIDS, 4, 4).world) == (0, 1)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert list(IdentitySampler(PIDS, 4, 4)) == list(IdentitySampler(PIDS, 4, 4, rank=1, world=2))
    assert list(ShuffleSampler(50, 4)) == list(ShuffleSampler(50, 4, rank=1, world=2))


def test_pairs_are_of_one_identity_and_every_row_comes_once() -> None:
    n = len(PIDS)
    samplers = [PairSampler(PIDS, 5, seed=3, rank=r, world=2) for r in range(2)]
    table = np.concatenate([s.batches(4) for s in samplers], 1)
    assert samplers[0].batches(4).shape == (-(-n // 10), 10)
    first, second = table.reshape(-1, 2).T % n
    assert (PIDS[first] == PIDS[second]).all() and sorted(first[:n]) == list(range(n))
    assert len(set(table.ravel().tolist())) == table.size  # copies of a row are marked, so each is drawn anew
    alone = Counter(PIDS.tolist())
    other = [a != b for a, b in zip(first, second, strict=True) if alone[PIDS[a]] > 3]
    assert 0.6 < np.mean(other) < 1
    np.testing.assert_array_equal(table, PairSampler(PIDS, 10, seed=3, rank=0, world=1).batches(4))


def test_pairs_reject() -> None:
    with pytest.raises(ValueError, match=r"PairSampler: expected integer pids .*, got float64 \(2,\) and 4"):
        PairSampler(np.zeros(2), 4)
    with pytest.raises(ValueError, match="and batch >= 1"):
        PairSampler(PIDS, 0)
