# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""MemoryBank: initialisation, update, loss, checkpoints, and PAUL's published numbers."""

import io

import pytest
import torch
from torch.nn.functional import normalize

from reidfast.nn import MemoryBank
from reidfast.ops import memory_loss


def feats(part, b):
    return torch.sin(0.3 * torch.arange(12, dtype=torch.float64) + b + part).view(4, 3)


def test_vector_mem():
    """PAUL's PatchMemory, called with paths [A, B] and feats(0), then [B, C] and feats(1)."""
    bank = MemoryBank(rows=3, dim=3, parts=2, k=1, momentum=0.9).double()  # rows A, B, C
    real = lambda b: torch.stack([feats(m, b)[0::2] for m in (0, 1)])  # views are (image, surrogate) pairs  # noqa: E731
    bank.write(torch.tensor([0, 1]), real(0.0))
    second = real(1.0)
    bank.write(torch.tensor([2]), second[:, 1:])  # C is new
    bank.update(torch.tensor([1]), second[:, :1])
    want = {
        (0, 1): (0.96060997, 0.87324425, 0.70787422),
        (1, 1): (0.39241908, 0.11199312, -0.17843685),
        (1, 2): (-0.61185789, -0.81827711, -0.95160207),
        (0, 0): (0.0, 0.29552021, 0.56464247),
    }
    for (part, row), values in want.items():
        torch.testing.assert_close(bank.bank[part, row], torch.tensor(values).double(), atol=1e-7, rtol=0)


def test_initialize_writes_every_row():
    bank = MemoryBank(rows=10, dim=4, parts=2, k=3)
    images = torch.randn(10, 2, 4)
    order = torch.randperm(10).split(3)
    embed = lambda x: normalize(x, dim=-1).transpose(0, 1).requires_grad_()  # noqa: E731
    with pytest.raises(ValueError, match=r"1 of 10 unwritten.*last batch"):
        bank.initialize([(images[i], i) for i in order[:-1]], embed)
    bank.initialize([(images[i], i) for i in order], embed)
    assert torch.equal(bank.bank, embed(images).detach()) and bool(bank.filled.all())
    assert not bank.bank.requires_grad


@pytest.mark.parametrize("parts", [None, 3])
def test_forward_is_memory_loss(parts):
    lead = () if parts is None else (parts,)
    x, rows = torch.randn(*lead, 5, 4, requires_grad=True), torch.tensor([3, 1, 4, 1, 5])
    near = MemoryBank(rows=20, dim=4, parts=parts, k=3, scale=2.0)
    near.write(torch.arange(20), torch.randn(*lead, 20, 4))
    assert torch.equal(near(x, rows), memory_loss(x, near.bank, 3, scale=2.0, exclude=rows))
    assert near.match(x, 4, exclude=rows).topk_indices.shape == (*lead, 5, 4)
    target = MemoryBank(rows=20, dim=4, parts=parts, k=None, scale=2.0, metric="dot", momentum=0.5, normalize=True)
    target.write(torch.arange(20), torch.randn(*lead, 20, 4))
    loss = target(x, rows)
    assert torch.equal(loss, memory_loss(x, target.bank, targets=rows, scale=2.0, metric="dot"))
    target.update(rows, x)
    loss.sum().backward()
    assert bool(x.grad.isfinite().all())
    torch.testing.assert_close(target.bank[..., rows, :].norm(dim=-1), torch.ones(*lead, 5))


def test_checkpoint():
    bank = MemoryBank(rows=6, dim=4, k=2)
    bank.write(torch.tensor([1, 5, -1]), torch.randn(3, 4))
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    other = MemoryBank(rows=6, dim=4, k=2)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.bank, bank.bank) and other.filled.tolist() == [False, True, False, False, False, True]
    assert not list(bank.parameters())
    assert "6x4, k=2" in repr(bank)


def test_training_step_lowers_the_loss():
    torch.manual_seed(0)
    bank = MemoryBank(rows=50, dim=8, k=5, scale=5.0)
    bank.write(torch.arange(50), normalize(torch.randn(50, 8), dim=-1))
    x, rows = torch.randn(10, 8, requires_grad=True), torch.arange(10)
    optimizer = torch.optim.SGD([x], lr=0.5)
    losses = []
    for _ in range(20):
        loss = bank(normalize(x, dim=-1), rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    "options,words",
    [
        ({"rows": 0}, "rows, dim and parts"),
        ({"k": 11}, "k from 1 to rows=10, or None, got 11"),
        ({"metric": "cosine"}, "'sqeuclidean', 'dot'"),
        ({"momentum": 2}, "weight of the old value"),
    ],
)
def test_rejects(options, words):
    with pytest.raises(ValueError, match=words):
        MemoryBank(**{"rows": 10, "dim": 4, "k": 3} | options)
    with pytest.raises(ValueError, match="no exclude beside k"):
        MemoryBank(rows=10, dim=4, k=3)(torch.randn(2, 4), torch.tensor([0, 1]), torch.tensor([1, 2]))


def test_vector_mem_image_centres():
    """PAUL's image memory; an image is written the first time and blended afterwards."""
    centres = MemoryBank(rows=3, dim=6, k=None, momentum=0.9).double()
    embed = lambda b: torch.cat([feats(m, b) for m in (0, 1)], 1).view(2, 2, 6).mean(1)  # noqa: E731
    centres.write_or_update(torch.tensor([0, 1]), embed(0.0))
    first = torch.tensor(
        [0.70061376, 0.50216469, 0.25885874, -0.09742400, -0.35761092, -0.58585352], dtype=torch.float64
    )
    torch.testing.assert_close(centres.bank[1], first, atol=1e-8, rtol=0)
    centres.write_or_update(torch.tensor([1, 2]), embed(1.0))
    second = torch.tensor(
        [0.71994093, 0.54055095, 0.31287516, -0.03025426, -0.28748327, -0.51903226], dtype=torch.float64
    )
    torch.testing.assert_close(centres.bank[1], second, atol=1e-8, rtol=0)
    assert torch.equal(centres.bank[2], embed(1.0)[1]) and bool(centres.filled.all())
    before = centres.bank.clone()
    centres.write_or_update(torch.tensor([-1, -1]), embed(2.0))
    assert torch.equal(centres.bank, before)
