# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Losses of half features, under autocast: a float32 scalar close to that of float32 features, finite gradients."""

import pytest
import torch
from torch.nn import functional

from reidfast.losses import (
    IPFL,
    PEDAL,
    AttentionLoss,
    CentreLoss,
    CircleLoss,
    ConsistencyLoss,
    DiversityLoss,
    KLDiversityLoss,
    NearestPositiveTripletLoss,
    OIMLoss,
    RegionShrinkageLoss,
    SetTripletLoss,
    TripletLoss,
)

LABELS = torch.arange(4).repeat_interleave(3)


def unit(*shape):
    return functional.normalize(torch.randn(*shape), dim=-1)


def pedal():
    bank = unit(2, 30, 16)
    return lambda x: PEDAL(4)(x, bank, torch.arange(5)), unit(2, 5, 16)


def ipfl():
    centres = unit(8, 16)
    return lambda x: IPFL()(x, centres, torch.arange(8).repeat_interleave(2)), unit(16, 16)


def oim():
    loss = OIMLoss(4, 16)
    loss.table.copy_(unit(4, 16))
    return lambda x: loss.eval()(x, LABELS), unit(12, 16)


def centre():
    loss = CentreLoss(4, 16)
    return lambda x: loss(x, LABELS), 80 * torch.randn(12, 16)  # squares beyond what float16 holds


def sets():
    loss = SetTripletLoss(normalize=False, margin=1e6)
    return lambda x: loss(*x.split(4)), 80 * torch.randn(12, 16)


def kl():
    logits = 20 * torch.randn(3, 4, 18)  # attention of some cells is zero in float16
    return KLDiversityLoss(eps=1e-6), logits.softmax(2)


def consistency():
    same = torch.tensor([True, True, False])
    return lambda x: ConsistencyLoss(margin=1.0)(x, x.flip(0) ** 2, same).loss, torch.rand(3, 12, 4)


def region():
    boxes, regions = torch.tensor([[2.0, 1.0, 8.0, 9.0]] * 3), torch.tensor([[0.0, 0.0, 12.0, 12.0]] * 3)
    return lambda x: RegionShrinkageLoss()(x, boxes, regions), torch.randn(3, 6, 6)


LOSSES = {
    "AttentionLoss": lambda: (lambda x: AttentionLoss()(x, LABELS), torch.randn(12, 2, 9)),
    "CentreLoss": centre,
    "CircleLoss": lambda: (lambda x: CircleLoss()(x, LABELS), torch.randn(12, 16)),
    "ConsistencyLoss": consistency,
    "DiversityLoss": lambda: (DiversityLoss(), 4 * torch.rand(6)),
    "IPFL": ipfl,
    "KLDiversityLoss": kl,
    "NearestPositiveTripletLoss": lambda: (lambda x: NearestPositiveTripletLoss()(x, LABELS), torch.randn(12, 16)),
    "OIMLoss": oim,
    "PEDAL": pedal,
    "RegionShrinkageLoss": region,
    "SetTripletLoss": sets,
    "TripletLoss": lambda: (lambda x: TripletLoss()(x, LABELS), torch.randn(12, 16)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_half_features(name, dtype):
    loss, x = LOSSES[name]()
    half = x.to(dtype).requires_grad_()
    want = loss(half.detach().float())
    with torch.autocast("cpu", dtype):
        got = loss(half)
    got.backward()
    if name != "DiversityLoss":  # of overlaps, which are float32
        assert got.dtype == torch.float32
    torch.testing.assert_close(got.float(), want, rtol=0.02, atol=0.02)
    assert bool(half.grad.isfinite().all()) and bool(half.grad.any())
