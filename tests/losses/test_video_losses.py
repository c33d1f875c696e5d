# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The four-part loss of RRU + STIM, the KL penalty on attention, and OIM's published values."""

import math

import pytest
import torch
from torch.nn import functional

from reidfast.losses import KLDiversityLoss, OIMLoss, RRUSTIMLoss, TripletLoss


def wave(shape, a, b):
    """sin(a n + b), row-major."""
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).view(shape)


def test_vector_oim():
    unit = lambda x: functional.normalize(x, dim=1)  # noqa: E731
    loss = OIMLoss(4, 3, scale=30.0).double()
    loss.table.copy_(unit(wave((4, 3), 0.5, 0.2)))
    x = unit(wave((2, 3), 0.9, 0.1)).requires_grad_()
    value = loss(x, torch.tensor([2, 0]))
    assert abs(value.item() - 56.99263105) < 1e-6
    value.backward()
    close = lambda got, want: torch.testing.assert_close(  # noqa: E731
        got, torch.tensor(want, dtype=torch.float64), atol=1e-7, rtol=0
    )
    close(x.grad[0], (3.44885003, 16.17983857, 24.94943834))
    close(loss.table[0], (0.97001513, 0.23110370, -0.07524449))
    close(loss.table[2], (0.11839942, 0.79371838, -0.59665125))


def test_oim_table_starts_at_zero_and_is_saved():
    loss = OIMLoss(3, 2)
    assert set(loss.state_dict()) == {"table", "queue", "next_slot"} and not loss.table.any()
    loss(functional.normalize(torch.randn(2, 2), dim=1), torch.tensor([0, 2]))
    again = OIMLoss(3, 2)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.table, loss.table) and bool(loss.table[2].any()) and not loss.table[1].any()


@pytest.mark.parametrize("auxiliary", [True, False])
def test_four_terms(auxiliary):
    video, parts = torch.randn(6, 5), torch.randn(6, 4, 3)
    logits, second = torch.randn(6, 7), torch.randn(6, 7)
    labels = torch.tensor([0, 0, 2, 2, 6, 6])
    got = RRUSTIMLoss(0.4)(video, parts, logits, second if auxiliary else None, labels)
    tri = TripletLoss(0.4)
    torch.testing.assert_close(got.identity, functional.cross_entropy(logits, labels))
    torch.testing.assert_close(got.video, tri(video, labels))
    torch.testing.assert_close(got.parts, (tri(parts[..., 0], labels) + tri(parts[..., 1], labels)
                                           + tri(parts[..., 2], labels)) / 3)  # fmt: skip
    want = got.identity + got.video + got.parts
    if auxiliary:
        torch.testing.assert_close(got.auxiliary, functional.cross_entropy(second, labels))
        want = want + got.auxiliary
    torch.testing.assert_close(got.total, want)


def test_four_terms_rejects():
    with pytest.raises(ValueError, match=r"expected parts \(B, C, P\) beside video \(2, 5\), got \(2, 4\)"):
        RRUSTIMLoss()(torch.zeros(2, 5), torch.zeros(2, 4), torch.zeros(2, 3), None, torch.zeros(2, dtype=torch.int64))


def test_kl_penalty_is_minus_the_mean_divergence():
    a = torch.randn(2, 3, 5, dtype=torch.float64).softmax(-1)
    total = 0.0
    for b in range(2):
        for i in range(3):
            for j in range(3):
                total += (a[b, i] * (a[b, i] / a[b, j]).log()).sum().item() if i != j else 0.0
    assert abs(KLDiversityLoss(weight=0.5)(a).item() + 0.5 * total / (2 * 6)) < 1e-12
    z = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: KLDiversityLoss()(v.softmax(-1)), (z,))


def test_kl_penalty_at_zero_attention():
    z = torch.tensor([[[500.0, 0.0], [0.0, 500.0]]], requires_grad=True)
    value = KLDiversityLoss()(z.softmax(-1))
    assert abs(value.item() - math.log(1e-12)) < 1e-4  # where it stops: each map puts all where the other has nothing
    value.backward()
    assert bool(z.grad.isfinite().all())
    assert KLDiversityLoss()(torch.zeros(0, 2, 3)).item() == 0 and KLDiversityLoss()(torch.ones(1, 1, 3)).item() == 0
    with pytest.raises(ValueError, match=r"KLDiversityLoss: expected attention \(B, K, L\), got \(4,\)"):
        KLDiversityLoss()(torch.zeros(4))
