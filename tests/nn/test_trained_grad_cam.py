# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Grad-CAM with its own graph: the definition, the written-out derivative against autograd, and the frozen mode."""

import pytest
import torch
from _support.casn_networks import lively
from torch import nn

from reidfast.nn import (
    GradCAM,
    closed_form_reason,
    convert_sync_batch_norm,
    frozen_layers,
    frozen_mode,
    grad_cam_from_pooled,
    grad_cam_from_score,
)


def stack():
    layers = nn.Sequential(
        nn.Sequential(nn.Conv2d(5, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Dropout(0.5),
        nn.Identity(),
    )
    return lively(layers).double(), lively(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU())).double()


def test_map_is_the_definition():
    features = torch.randn(3, 5, 4, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64)
    score = (features.square().mean((2, 3)) * weight).sum(1)
    maps = grad_cam_from_score(score, features)
    slope = 2 * features.detach() * weight[:, None, None] / 8  # d score / d F
    want = (slope.mean((2, 3))[:, :, None, None] * features.detach()).sum(1).relu()
    torch.testing.assert_close(maps, want)
    # M = relu(sum_c (2 w_c / 8) mean(F_c) F_c): the second factor depends on F too
    again = features.detach().clone().requires_grad_()
    explicit = (again.mean((2, 3)) * weight / 4)[:, :, None, None]
    explicit = (explicit * again).sum(1).relu()
    torch.testing.assert_close(
        torch.autograd.grad(maps.square().sum(), features)[0], torch.autograd.grad(explicit.square().sum(), again)[0]
    )


def test_detached_weights_are_constants():
    features = torch.randn(2, 5, 4, 2, dtype=torch.float64, requires_grad=True)
    score = features.square().mean((2, 3)).sum(1)
    got = torch.autograd.grad(grad_cam_from_score(score, features, detach_weights=True).sum(), features)[0]
    weights = features.detach().mean((2, 3)) / 4
    open_ = (weights[:, :, None, None] * features.detach()).sum(1, keepdim=True) > 0
    torch.testing.assert_close(got, weights[:, :, None, None] * open_)


def test_module_shows_the_class_asked_for():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    head = lively(head).double()
    cam, features = GradCAM(head), torch.randn(4, 5, 4, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([2, 0, 1, 2])
    norm, linear = head[2], head[4]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    want = torch.einsum("bc,bchw->bhw", linear.weight[labels] * scale / 8, features).relu()
    maps = cam(features, labels)
    torch.testing.assert_close(maps, want)
    for got, wanted in zip(
        torch.autograd.grad(maps.square().sum(), [features, linear.weight]),
        torch.autograd.grad(want.square().sum(), [features, linear.weight]),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)
    assert head.training and all(m.training for m in head.modules())
    with torch.no_grad():
        alone = cam(features.detach())
    with frozen_mode(head):
        own = head(features).argmax(1)
    torch.testing.assert_close(alone, cam(features, own).detach())
    assert not alone.requires_grad
    torch.testing.assert_close(GradCAM(head, detach_weights=True)(features, labels), want)
    with pytest.raises(ValueError, match=r"expected logits \(B, classes\)"):
        GradCAM(nn.Identity())(features)


def test_frozen_layers_equal_evaluation_mode_and_its_derivative():
    conv, linear = stack()
    rows = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    v = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    out, back = frozen_layers([conv, linear], rows)
    with frozen_mode(conv, linear):
        want = linear(conv(rows[:, :, None, None]).flatten(1))
    torch.testing.assert_close(out, want)
    (slope,) = torch.autograd.grad((want * v).sum(), rows, create_graph=True)
    torch.testing.assert_close(back(v), slope)
    parameters = [*conv.parameters(), *linear.parameters(), v]
    ours = torch.autograd.grad(back(v).square().sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad(slope.square().sum(), parameters, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(zero if a is None else a.abs().sum(), zero if b is None else b.abs().sum(),
                                   check_dtype=False)  # fmt: skip
        if a is not None and b is not None:
            torch.testing.assert_close(a, b)


def test_synchronised_batch_norms_are_served_too():
    conv, linear = stack()
    rows = torch.randn(3, 5, dtype=torch.float64)
    out, back = frozen_layers([conv, linear], rows)
    v = torch.randn_like(out)
    slope = back(v)
    for layers in (conv, linear):
        convert_sync_batch_norm(layers)
    assert closed_form_reason([conv, linear]) is None
    again, back = frozen_layers([conv, linear], rows)
    assert torch.equal(out, again) and torch.equal(slope, back(v))


@pytest.mark.parametrize("parts,height", [(1, 6), (3, 6), (4, 6)], ids=["mean", "stripes", "overlapping stripes"])
def test_pooled_form_equals_autograd_over_the_map(parts, height):
    features = torch.randn(3, 5, height, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, parts, dtype=torch.float64, requires_grad=True)

    def score(pooled):
        return (torch.tanh(pooled) * weight).sum((1, 2))

    def pool():
        return nn.functional.adaptive_avg_pool2d(features, (parts, 1)).squeeze(3)

    pooled = pool()
    (gradient,) = torch.autograd.grad(score(pooled).sum(), pooled, create_graph=True)
    ours = grad_cam_from_pooled(features, gradient if parts > 1 else gradient.squeeze(2))
    theirs = grad_cam_from_score(score(pool()), features)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), [features, weight]),
        torch.autograd.grad(theirs.square().sum(), [features, weight]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_frozen_mode_restores_what_was():
    conv, linear = stack()
    linear[1].eval()
    with frozen_mode(conv, linear):
        assert not any(m.training for m in [*conv.modules(), *linear.modules()])
    assert all(m.training for m in conv.modules()) and not linear[1].training and linear[0].training
    with pytest.raises(KeyError), frozen_mode(conv, only=(nn.Dropout,)):
        assert [type(m) for m in conv.modules() if not m.training] == [nn.Dropout]
        raise KeyError
    assert all(m.training for m in conv.modules())


def test_layers_without_a_closed_form_are_named():
    assert closed_form_reason(stack()) is None
    assert "GELU" in closed_form_reason([nn.Linear(2, 2), nn.GELU()])
    assert "kernel (3, 3)" in closed_form_reason([nn.Conv2d(2, 2, 3)])
    assert "running statistics" in closed_form_reason([nn.BatchNorm1d(2, track_running_stats=False)])
    with pytest.raises(NotImplementedError, match="GELU"):
        frozen_layers([nn.GELU()], torch.ones(1, 2))


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda f: grad_cam_from_score(f.sum((1, 2, 3)), f[0]), r"features \(B, C, H, W\)"),
        (lambda f: grad_cam_from_score(f.sum(), f), r"a score \(B,\)"),
        (lambda f: grad_cam_from_score(f.detach().sum((1, 2, 3)), f.detach()), "require grad"),
        (lambda f: grad_cam_from_pooled(f, f[:, :2, 0]), r"\(B, C\) or \(B, C, P\)"),
    ],
)
def test_rejects(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.ones(2, 3, 4, 2, requires_grad=True))
