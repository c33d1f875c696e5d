# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Quality units and the pooling by quality."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reidfast.nn import QualityPool, QualityUnit
from reidfast.nn.quality import quality_weights

F64 = torch.float64


def wave(shape: tuple[int, ...], a: float, b: float) -> Tensor:
    n = torch.arange(torch.Size(shape).numel(), dtype=F64)
    return torch.sin(a * n + b).view(shape)


def test_tv_qan() -> None:
    """Weights, pooled feature and the gradient of the raw scores."""
    features, z = wave((4, 5), 0.9, 0.3), wave((4,), 0.8, 0.1).requires_grad_()
    offsets = torch.tensor([0, 4])
    mu = quality_weights(z, offsets)
    assert mu.tolist() == pytest.approx([0.20298760, 0.26542204, 0.28205737, 0.24953298], abs=1e-8)
    pooled = QualityPool()(features, z, offsets)
    wanted = [0.06616938, 0.05666521, 0.00427794, -0.05134679, -0.06811330]
    assert pooled[0].tolist() == pytest.approx(wanted, abs=1e-8)
    (pooled[0] @ wave((5,), 1.1, 0.5)).backward()
    assert z.grad is not None
    assert z.grad.tolist() == pytest.approx([0.17772997, -0.20783872, -0.09516428, 0.22711906], abs=1e-8)


SETS = torch.tensor([0, 3, 3, 4, 9])


def by_hand(features: Tensor, scores: Tensor, pooling: str) -> Tensor:
    """Set by set, part by part."""
    rows = []
    for a, b in zip(SETS[:-1].tolist(), SETS[1:].tolist(), strict=True):
        parts = []
        for p in range(features.shape[1]):
            x, s = features[a:b, p], torch.sigmoid(scores[a:b, p])
            if a == b:
                parts.append(features.new_zeros(features.shape[2]))
            elif pooling == "quality":
                parts.append((s[:, None] * x).sum(0) / s.sum())
            else:
                parts.append(x.mean(0) if pooling == "mean" else x.amax(0))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


@pytest.mark.parametrize("pooling", ["quality", "mean", "max"])
@pytest.mark.parametrize("parts", [1, 3])
def test_pooling_is_the_formula(pooling: str, parts: int) -> None:
    features, scores = wave((9, parts, 4), 0.7, 0.2), 3 * wave((9, parts), 1.3, 0.4)
    pool = QualityPool(pooling)
    found = pool(features, scores, SETS)
    torch.testing.assert_close(found, by_hand(features, scores, pooling))
    if parts == 1:
        torch.testing.assert_close(pool(features[:, 0], scores[:, 0], SETS), found)
    dense = pool(features.unflatten(0, (3, 3)), scores.unflatten(0, (3, 3)))
    torch.testing.assert_close(dense, pool(features, scores, torch.tensor([0, 3, 6, 9])))
    order = torch.tensor([2, 0, 1, 3, 8, 4, 6, 5, 7])
    torch.testing.assert_close(pool(features[order], scores[order], SETS), found)


@pytest.mark.parametrize("pooling", ["quality", "mean", "max"])
def test_gradients(pooling: str) -> None:
    features, scores = wave((9, 2, 3), 0.7, 0.2).requires_grad_(), wave((9, 2), 1.3, 0.4).requires_grad_()
    pool = QualityPool(pooling)
    assert torch.autograd.gradcheck(lambda f: pool(f, scores.detach(), SETS), (features,))
    if pooling == "quality":
        assert torch.autograd.gradcheck(lambda f, s: pool(f, s, SETS), (features, scores))
    else:
        assert not pool(features.detach(), scores, SETS).requires_grad or pooling == "mean"


def test_scores_of_any_size() -> None:
    features, offsets = wave((4, 3), 0.4, 0.1), torch.tensor([0, 2, 4])
    scores = torch.tensor([-800.0, -801.0, 700.0, -700.0], dtype=F64)
    mu = quality_weights(scores, offsets)
    assert mu[:2].tolist() == pytest.approx(torch.tensor([0.0, -1.0], dtype=F64).softmax(0).tolist())
    assert mu[2:].tolist() == pytest.approx([1.0, 0.0])
    torch.testing.assert_close(QualityPool()(features, scores, offsets)[1], features[2])


@pytest.mark.parametrize("kind", ["pool3", "pool4", "flat", "image"])
def test_units_start_at_a_half(kind: str) -> None:
    torch.manual_seed(0)
    size, channels = ((56, 28), 3) if kind == "image" else ((8, 4), 16)
    unit = QualityUnit(channels, 3, kind=kind, hidden=8, size=size)
    scores = unit(torch.randn(10, channels, *size))
    assert scores.shape == (10, 3) and (scores.sigmoid() - 0.5).abs().max() < 0.15
    assert unit.score.bias.abs().max() == 0
    scores.sum().backward()
    assert all(p.grad is not None for p in unit.parameters())


def test_released_units_have_the_published_sizes() -> None:
    """192*28*28 = 150528 and 4096 inputs of the last layer at 224x224; linear in the pixels' sign."""
    assert QualityUnit(192, 3, kind="flat", size=(28, 28)).score.in_features == 150528
    unit = QualityUnit(3, 3, kind="image", size=(224, 224))
    assert unit.score.in_features == 4096
    assert not any(isinstance(m, nn.ReLU | nn.BatchNorm2d) for m in unit.modules())


def test_rejects() -> None:
    with pytest.raises(ValueError, match="expected size, the"):
        QualityUnit(3, kind="image")
    with pytest.raises(ValueError, match="kind"):
        QualityUnit(3, kind="pool5")
    with pytest.raises(ValueError, match=r"maps of \(8, 4\) for kind 'flat', got \(4, 4\)"):
        QualityUnit(2, kind="flat", size=(8, 4))(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match=r"\(T, 2, h, w\), got \(1, 3, 4, 4\)"):
        QualityUnit(2)(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="pooling"):
        QualityPool("sum")
    with pytest.raises(ValueError, match="scores to match"):
        QualityPool()(torch.zeros(4, 3), torch.zeros(5), torch.tensor([0, 4]))
