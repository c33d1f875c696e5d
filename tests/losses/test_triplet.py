# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Triplet losses against naive loops and published values."""

import math

import pytest
import torch

from reidfast.losses.triplet import NearestPositiveTripletLoss, TripletLoss


def vectors(shape, a, b):
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).view(shape)


def double_loop(features, pids, margin):
    losses = []
    for i, x in enumerate(features):
        ap = [(x - y).norm() for j, y in enumerate(features) if j != i and pids[j] == pids[i]]
        an = [(x - y).norm() for j, y in enumerate(features) if pids[j] != pids[i]]
        if ap and an:
            gap = max(ap) - min(an)
            losses.append(torch.log1p(gap.exp()) if margin is None else (margin + gap).clamp(min=0))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("margin,want", [(0.4, 2.04889621), (0.3, 1.94889621), (None, 1.84335959)])
def test_published_vector(margin, want):
    features, pids = vectors((6, 4), 0.61, 0.3), torch.tensor([0, 0, 1, 1, 2, 2])
    assert TripletLoss(margin)(features, pids).item() == pytest.approx(want, abs=5e-9)


@pytest.mark.parametrize("margin", [0.0, 0.3, 5.0, None])
@pytest.mark.parametrize("normalize", [False, True])
def test_equals_double_loop(margin, normalize):
    pids = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3, 3])[torch.randperm(10)]  # one identity with a single row
    ours = torch.randn(10, 7, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    loss = TripletLoss(margin, normalize=normalize)(ours, pids)
    rows = theirs / theirs.norm(dim=1, keepdim=True) if normalize else theirs
    want = double_loop(rows, pids, margin)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(torch.autograd.grad(loss, ours)[0], torch.autograd.grad(want, theirs)[0])


def test_no_triplet_gives_zero_with_zero_gradient():
    for pids in (torch.arange(4), torch.zeros(4, dtype=torch.int64)):
        for margin in (0.3, None):
            features = torch.randn(4, 3, requires_grad=True)
            loss = TripletLoss(margin)(features, pids)
            assert loss.item() == 0
            assert torch.equal(torch.autograd.grad(loss, features)[0], torch.zeros(4, 3))


def test_half_features_and_compile():
    features, pids = torch.randn(8, 5), torch.arange(8) // 2
    loss = TripletLoss()
    assert loss(features.half(), pids).dtype == torch.float32
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, pids), loss(features, pids))


def test_rejects_negative_margin():
    with pytest.raises(ValueError, match="TripletLoss: expected margin >= 0 or None"):
        TripletLoss(-0.1)


def test_nearest_positive_published_vector():
    x = torch.sin(0.61 * torch.arange(32, dtype=torch.float64) + 0.3).view(8, 4)
    loss = NearestPositiveTripletLoss(1.0)(x, torch.tensor([0, 0, 1, 1, 2, 2, 0, 1]))
    assert loss.item() == pytest.approx(1.35416638, abs=6e-9)


def test_nearest_positive_equals_a_loop():
    x, pids = torch.randn(12, 6, dtype=torch.float64, requires_grad=True), torch.tensor([0] * 4 + [1] * 5 + [2, 3, 3])
    losses = []
    for i, pid in enumerate(pids.tolist()):
        d = ((x[i] - x).square().sum(1) + 1e-5).sqrt()
        positives = [d[j] for j in range(12) if j != i and pids[j] == pid]
        if positives:
            losses.append((0.5 + min(positives) - min(d[j] for j in range(12) if pids[j] != pid)).clamp(min=0))
    want = torch.stack(losses).mean()
    loss = NearestPositiveTripletLoss(0.5, normalize=False)(x, pids)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], torch.autograd.grad(want, x)[0])


def test_nearest_positive_edges():
    loss = NearestPositiveTripletLoss()
    x = torch.randn(1, 4).repeat(4, 1).requires_grad_()
    value = loss(x, torch.tensor([0, 0, 1, 1]))  # copies: finite gradient
    value.backward()
    assert value.item() == pytest.approx(1.0) and bool(x.grad.isfinite().all())
    assert loss(x, torch.zeros(4)).item() == 0 and loss(x[:0], torch.zeros(0)).item() == 0
    with pytest.raises(ValueError, match=r"expected features \(B, D\) and pids \(B,\)"):
        loss(x, torch.zeros(3))
    with pytest.raises(ValueError, match="margin >= 0 and eps > 0"):
        NearestPositiveTripletLoss(-1.0)
