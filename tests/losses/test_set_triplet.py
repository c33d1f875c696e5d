# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The set-level losses of QAN."""

from __future__ import annotations

import pytest
import torch

from reidfast.losses import SetTripletLoss


def unit(b: float) -> torch.Tensor:
    x = torch.sin(0.7 * torch.arange(3, dtype=torch.float64) + b)
    return (x / x.norm())[None]


def test_tv_qan() -> None:
    """Values that the published formula gives."""
    a, p, n = unit(0.0), unit(0.4), unit(0.9)
    assert (a - p).square().sum().item() == pytest.approx(0.10688011, abs=1e-8)
    assert (a - n).square().sum().item() == pytest.approx(0.40956176, abs=1e-8)
    assert SetTripletLoss(1.2)(a, p, n).item() == pytest.approx(0.44865917, abs=1e-8)
    assert SetTripletLoss(1.2, contrastive=1.0)(a, p, n).item() == pytest.approx(0.44865917 + 0.10688011 / 2, abs=1e-8)


def test_mean_over_triplets_and_normalisation() -> None:
    g = torch.Generator().manual_seed(0)
    a, p, n = (torch.randn(6, 4, generator=g, dtype=torch.float64) for _ in range(3))
    loss = SetTripletLoss(0.5, contrastive=0.3)
    each = [loss(a[i : i + 1], p[i : i + 1], n[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(loss(a, p, n), torch.stack(each).mean())
    torch.testing.assert_close(loss(3 * a, p, 0.2 * n), loss(a, p, n))
    raw = SetTripletLoss(0.5, normalize=False)
    want = (0.5 + (a - p).square().sum(1) - (a - n).square().sum(1)).clamp(min=0).sum() / 12
    torch.testing.assert_close(raw(a, p, n), want)
    assert loss(a[:0], p[:0], n[:0]).item() == 0


def test_gradcheck() -> None:
    g = torch.Generator().manual_seed(1)
    x = [torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(SetTripletLoss(1.8, contrastive=1.0), x)


def test_rejects() -> None:
    with pytest.raises(ValueError, match="margin"):
        SetTripletLoss(-1)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\), \(2, 3\), \(1, 3\)"):
        SetTripletLoss()(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1, 3))
