# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""PEDAL against its definition and the published code; the bank is a constant."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from reidfast.losses import PEDAL
from reidfast.nn import MemoryBank


def vectors(shape, a, b):
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).view(shape)


def published():
    features = normalize(vectors((2, 3, 4), 0.7, 0.1), dim=-1).requires_grad_()
    return features, normalize(vectors((2, 8, 4), 0.37, 0.5), dim=-1), torch.tensor([1, 4, 7])


@pytest.mark.parametrize(
    "scale,k,loss,norm",
    [
        (1, 1, 0.92143867, 0.35183467),
        (1, 3, 0.16968321, 0.13536324),
        (5, 1, 0.27491973, 0.41311996),
        (15, 1, 0.12853930, 0.58681191),
        (5, 3, 0.00212316, 0.01695297),
    ],
)
def test_published_vector(scale, k, loss, norm):
    x, bank, rows = published()
    value = PEDAL(k, scale)(x, bank, rows)
    (grad,) = torch.autograd.grad(value, x)
    assert value.item() == pytest.approx(loss, abs=6e-9) and grad.norm().item() == pytest.approx(norm, abs=6e-9)
    if (scale, k) == (1, 1):
        wanted = torch.tensor([0.05820145, 0.01762872, -0.02532999, -0.06486039], dtype=torch.float64)
        torch.testing.assert_close(grad[0, 0], wanted, atol=6e-9, rtol=0)


def test_equals_the_definition():
    x = normalize(torch.randn(3, 5, 8, dtype=torch.float64), dim=-1).requires_grad_()
    bank, rows = torch.randn(3, 40, 8, dtype=torch.float64), torch.tensor([7, 0, 39, -1, 3])
    losses = []
    for part in range(3):
        for i, own in enumerate(rows.tolist()):
            d = (x[part, i] - bank[part]).square().sum(1)[[j for j in range(40) if j != own]]
            losses.append((-2 * d).exp().sum().log() - (-2 * d.sort().values[:4]).exp().sum().log())
    want, loss = torch.stack(losses).mean(), PEDAL(4, 2.0)(x, bank, rows)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], torch.autograd.grad(want, x)[0])


def test_takes_a_memory_bank_one_part_and_no_rows():
    bank = MemoryBank(rows=20, dim=4, parts=2, k=1, scale=99.0)
    bank.write(torch.arange(20), torch.randn(2, 20, 4))
    x, rows, loss = torch.randn(2, 3, 4), torch.tensor([0, 5, 7]), PEDAL(3, 2.0)
    assert torch.equal(loss(x, bank, rows), loss(x, bank.bank, rows))
    assert loss(x[0], bank.bank[0], rows).dim() == 0
    assert loss(x[:, :0], bank, rows[:0]).item() == 0


@pytest.mark.parametrize("options", [{"k": 0}, {"scale": 0.0}, {"scale": float("nan")}])
def test_rejects(options):
    with pytest.raises(ValueError, match="PEDAL: expected k >= 1 and scale > 0"):
        PEDAL(**options)
