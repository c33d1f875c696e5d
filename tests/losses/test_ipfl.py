# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""IPFL against its definition as a plain loop and the published code; finite gradient at distance zero."""

import math
import warnings

import pytest
import torch

from reidfast.losses.ipfl import IPFL


def vectors(shape, a, b):
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).view(shape)


def published():
    embeddings = vectors((12, 5), 0.9, 0.2)
    return embeddings, 0.9 * embeddings.view(6, 2, 5).mean(1) + 0.1 * vectors((6, 5), 1.3, 0.4), torch.arange(12) // 2


def loop(embeddings, centres, own, margin, r, candidates):
    total = 0
    for f, u in zip(embeddings, own.tolist(), strict=True):
        distances = (f - centres).norm(dim=1)
        negative = 0
        for v in [v for v in distances.argsort().tolist() if v != u][:candidates]:
            if len(centres) > r - 1 and u not in (centres[v] - centres).norm(dim=1).argsort()[:r].tolist():
                negative = distances[v]
                break
        total = total + (margin + distances[u] - negative).clamp(min=0)
    return total / len(embeddings)


@pytest.mark.filterwarnings("ignore:IPFL")
@pytest.mark.parametrize("r,want", [(1, 2.39410726), (2, 1.93433010), (3, 1.53346787), (6, 3.20200906)])
def test_published_vector(r, want):
    embeddings, centres, own = published()
    embeddings.requires_grad_()
    loss = IPFL(2.0, r=r)(embeddings, centres, own)
    assert loss.item() == pytest.approx(want, abs=5e-9)
    if r == 3:
        (grad,) = torch.autograd.grad(loss, embeddings)
        assert grad.norm().item() == pytest.approx(0.31201768, abs=5e-9)


@pytest.mark.parametrize("candidates", [1, 4, 15])
def test_equals_loop(candidates):
    centres = torch.randn(3, 16, dtype=torch.float64)[torch.arange(20) % 3] + 0.3 * torch.randn(20, 16).double()
    ours = (centres.repeat(2, 1) + 0.2 * torch.randn(40, 16)).requires_grad_()
    own = torch.arange(40) % 20
    loss, want = IPFL(r=4, candidates=candidates)(ours, centres, own), loop(ours, centres, own, 2.0, 4, candidates)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(torch.autograd.grad(loss, ours)[0], torch.autograd.grad(want, ours)[0])


def test_distance_at_zero_has_finite_gradient():
    centres = torch.randn(8, 5)
    embeddings = centres.clone().requires_grad_()
    loss = IPFL(r=2)(embeddings, centres, torch.arange(8))
    (grad,) = torch.autograd.grad(loss, embeddings)
    assert bool(grad.isfinite().all())
    assert IPFL(r=2)(centres[:0], centres, torch.arange(0)).item() == 0


def test_centres_carry_no_gradient():
    embeddings, centres, own = (t.requires_grad_() if t.is_floating_point() else t for t in published())
    IPFL(r=2)(embeddings, centres, own).backward()
    assert embeddings.grad is not None and centres.grad is None


def test_warns_once_about_small_batches():
    loss = IPFL(r=3)
    with pytest.warns(UserWarning, match="IPFL: a batch of B=3 images with r=3 has few trustworthy negatives"):
        assert loss(torch.zeros(3, 2), torch.zeros(3, 2), torch.arange(3)).item() == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(torch.zeros(3, 2), torch.zeros(3, 2), torch.arange(3))


def test_rejects():
    with pytest.raises(ValueError, match="IPFL: expected r >= 1"):
        IPFL(r=0)
