# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Pairs in P x K batches: half of one person across cameras, half of two, a function of seed, epoch, step and rank."""

import numpy as np
import pytest

from reidfast.data import IdentitySampler, SiameseSampler

PIDS = np.repeat(np.arange(20), 8)
CAMS = np.tile([0, 0, 0, 0, 1, 1, 1, 1], 20)


def every(sampler, epochs=2):
    for epoch in range(epochs):
        for step, rows in enumerate(sampler.batches(epoch)):
            yield rows % sampler.n, sampler.pairs(step, epoch)


def test_half_of_one_person_across_cameras_half_of_two():
    sampler = SiameseSampler(PIDS, CAMS, 5, 4, positives=16, negatives=12, seed=3)
    for rows, (first, second, positives) in every(sampler):
        same = PIDS[rows[first]] == PIDS[rows[second]]
        assert positives == 16 and len(first) == len(second) == 28
        assert same[:16].all() and not same[16:].any()
        assert (CAMS[rows[first]] != CAMS[rows[second]])[:16].all()
        assert len({frozenset(p) for p in zip(first, second, strict=True)}) == 28


def test_falls_back_to_one_camera_and_repeats_when_there_are_no_others():
    one_camera = SiameseSampler(PIDS, np.zeros_like(CAMS), 2, 2, positives=5, negatives=3, seed=1)
    for rows, (first, second, positives) in every(one_camera):
        same = PIDS[rows[first]] == PIDS[rows[second]]
        assert same[:positives].all() and not same[positives:].any() and len(first) == 8
        assert len({frozenset(p) for p in zip(first[:5], second[:5], strict=True)}) == 2


def test_copies_of_one_image_come_last():
    pids, cams = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    sampler = SiameseSampler(pids, cams, 2, 4, positives=8, negatives=0, mark_repeats=True, seed=2)
    for rows, (first, second, _) in every(sampler, 5):
        crossing = sum(
            pids[a] == pids[b] and cams[a] != cams[b] for i, a in enumerate(rows) for b in rows[i + 1 :]
        )  # fmt: skip
        got = (cams[rows[first]] != cams[rows[second]]).sum()
        assert got == min(8, crossing)


def test_depends_on_seed_epoch_step_and_rank_alone():
    def make(seed=0, rank=0, world=1):
        return SiameseSampler(PIDS, CAMS, 5, 4, seed=seed, rank=rank, world=world)

    a, b = make(), make()
    list(a)  # having been used changes nothing
    b.set_epoch(1)
    assert all(np.array_equal(x, y) for x, y in zip(a.pairs(2, 1)[:2], b.pairs(2)[:2], strict=True))
    drawn = [a.pairs(2, 1), a.pairs(3, 1), a.pairs(2, 2), make(seed=1).pairs(2, 1)]
    drawn += [make(rank=r, world=2).pairs(1, 1) for r in (0, 1)]
    keys = {tuple(p.first.tolist() + p.second.tolist()) for p in drawn}
    assert len(keys) == len(drawn)


def test_batches_are_those_of_the_identity_sampler():
    ours = SiameseSampler(PIDS, CAMS, 5, 4, seed=7)
    theirs = IdentitySampler(PIDS, 5, 4, camids=CAMS, camera_aware=True, seed=7)
    assert np.array_equal(ours.batches(3), theirs.batches(3))


def test_rejects():
    with pytest.raises(ValueError, match="k >= 2"):
        SiameseSampler(PIDS, CAMS, 4, 1)
    with pytest.raises(ValueError, match="p >= 2"):
        SiameseSampler(PIDS, CAMS, 1, 4)
