# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Cross-entropy, centre, circle and OIM losses against naive loops and published numbers."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from reidfast.losses import CentreLoss, CircleLoss, CrossEntropyLoss, OIMLoss


def wave(shape, a, b, dtype=torch.float64):
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).view(shape).to(dtype)


def test_vector_label_smoothing():
    logits, labels = wave((4, 5), 0.5, 0.1), torch.tensor([0, 3, 1, 4])
    assert CrossEntropyLoss(0.1)(logits, labels).item() == pytest.approx(2.24277336, abs=1e-8)
    assert CrossEntropyLoss(0.0)(logits, labels).item() == pytest.approx(2.30007081, abs=1e-8)


def test_label_smoothing_is_the_stated_sum():
    logits, labels = torch.randn(6, 7, dtype=torch.float64), torch.randint(7, (6,))
    total = 0.0
    for row, y in zip(logits, labels.tolist(), strict=True):
        logs = row.log_softmax(0)
        total -= sum((0.9 * (c == y) + 0.1 / 7) * logs[c].item() for c in range(7))
    assert CrossEntropyLoss()(logits, labels).item() == pytest.approx(total / 6)


def test_label_smoothing_rejects():
    with pytest.raises(ValueError, match=r"label_smoothing in \[0, 1\], got 2"):
        CrossEntropyLoss(2)


def test_vector_centre():  # in float32
    loss = CentreLoss(3, 4)
    loss.centres.data = wave((3, 4), 0.21, 0.9, torch.float32)
    value = loss(wave((6, 4), 0.61, 0.3, torch.float32), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert value.item() == pytest.approx(3.60668302, abs=2e-6)


def test_centres_move_by_sgd_as_if_the_weight_were_one():
    torch.manual_seed(0)
    loss, weight = CentreLoss(3, 4), 5e-4
    before = loss.centres.detach().clone()
    x, y = torch.randn(5, 4), torch.tensor([0, 0, 2, 2, 2])
    (weight * loss(x, y)).backward()
    loss.step_centres(weight)
    want = before.clone()
    for c in range(3):
        for i in (y == c).nonzero().flatten():
            want[c] -= 0.5 * 2 / 5 * (before[c] - x[i])
    torch.testing.assert_close(loss.centres.detach(), want)
    assert loss.centres.grad is None and torch.equal(loss.centres[1], before[1])


def naive_circle(x, y, m, g):
    x = normalize(x, dim=1)
    terms = []
    for i in range(len(x)):
        positive = [float(x[i] @ x[j]) for j in range(len(x)) if j != i and y[j] == y[i]]
        negative = [float(x[i] @ x[j]) for j in range(len(x)) if y[j] != y[i]]
        if positive and negative:
            pull = sum(math.exp(-g * max(0, 1 + m - s) * (s - 1 + m)) for s in positive)
            push = sum(math.exp(g * max(0, s + m) * (s - m)) for s in negative)
            terms.append(math.log1p(pull * push))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("m,g", [(0.25, 8.0), (0.4, 16.0)])
def test_circle_against_the_double_loop(m, g):
    x, y = torch.randn(9, 5, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 3])
    assert CircleLoss(m, g)(x, y).item() == pytest.approx(naive_circle(x, y, m, g))


def test_circle_stays_finite_and_handles_one_identity():
    x = torch.randn(6, 4, requires_grad=True)
    loss = CircleLoss(0.25, 1e4)(x, torch.tensor([0, 0, 1, 1, 2, 2]))
    loss.backward()
    assert bool(loss.isfinite()) and bool(x.grad.isfinite().all())
    x.grad = None
    loss = CircleLoss()(x, torch.zeros(6, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and not bool(x.grad.any())


def test_vector_oim():
    loss = OIMLoss(4, 3, scale=30, momentum=0.5).double()
    loss.table.copy_(normalize(wave((4, 3), 0.5, 0.2), dim=1))
    x = normalize(wave((2, 3), 0.9, 0.1), dim=1).requires_grad_()
    value = loss(x, torch.tensor([2, 0]))
    assert value.item() == pytest.approx(56.99263105, abs=1e-7)
    value.backward()
    torch.testing.assert_close(
        x.grad[0], torch.tensor([3.44885003, 16.17983857, 24.94943834], dtype=torch.float64), atol=1e-7, rtol=0
    )
    for row, want in ((0, (0.97001513, 0.23110370, -0.07524449)), (2, (0.11839942, 0.79371838, -0.59665125))):
        torch.testing.assert_close(loss.table[row], torch.tensor(want, dtype=torch.float64), atol=1e-7, rtol=0)


def naive_oim(table, queue, x, y, scale):
    bank = torch.cat([table, queue])
    rows = [i for i in range(len(x)) if y[i] >= 0]
    return sum(float((scale * bank @ x[i]).logsumexp(0) - scale * bank[y[i]] @ x[i]) for i in rows) / max(1, len(rows))


def test_oim_against_the_loop_with_queue_and_repeated_labels():
    torch.manual_seed(3)
    loss = OIMLoss(5, 6, scale=10, momentum=0.5, queue=4).double()
    table, queue, slot = torch.zeros(5, 6).double(), torch.zeros(4, 6).double(), 0
    for _ in range(4):
        x, y = normalize(torch.randn(7, 6).double(), dim=1), torch.tensor([1, -1, 1, 4, -1, -1, 0])
        assert loss(x, y).item() == pytest.approx(naive_oim(table, queue, x, y, 10))
        for xi, yi in zip(x, y.tolist(), strict=True):
            if yi >= 0:
                table[yi] = normalize(0.5 * table[yi] + 0.5 * xi, dim=0)
            else:
                queue[slot % 4], slot = xi, slot + 1
        torch.testing.assert_close(loss.table, table)
        torch.testing.assert_close(loss.queue, queue)


def test_oim_state_and_modes():
    loss = OIMLoss(3, 2, queue=2)
    x = normalize(torch.randn(2, 2), dim=1)
    loss.eval()
    loss(x, torch.tensor([0, -1]))
    assert not bool(loss.table.any()) and not bool(loss.queue.any())
    loss.train()
    assert loss(x, torch.tensor([-1, -1])).item() == 0
    again = OIMLoss(3, 2, queue=2)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.queue, loss.queue) and int(again.next_slot) == 0
    with pytest.raises(ValueError, match=r"features \(B, 2\) and labels"):
        loss(x, torch.tensor([0]))
