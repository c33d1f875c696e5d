# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""grad_cam against its float64 reference, first and second order; memory formats, dead maps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_implementations import every_implementation

from reidfast.ops import grad_cam
from reidfast.ops.reference.grad_cam import grad_cam as reference
from reidfast.testing import FLOATS, assert_no_worse, shape_id

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 130, 3, 3), (2, 300, 16, 12), (2, 2048, 4, 5)]  # B, C, H, W
impl = every_implementation("grad_cam")


def make(shape, dtype=torch.float64, *, last=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    weights = torch.randn(shape[:2], generator=generator, dtype=torch.float64).to(dtype)
    return (features.contiguous(memory_format=torch.channels_last) if last else features), weights


def run(function, inputs, grad):
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = function(*inputs)
    return (out, *torch.autograd.grad(out, inputs, grad.to(out)))


def run_twice(function, inputs, grad, seconds):
    """Derivatives of a random functional of the first derivatives."""
    inputs = [t.detach().requires_grad_() for t in (*inputs, grad)]
    out = function(*inputs[:2])
    first = torch.autograd.grad(out, inputs[:2], inputs[2].to(out.device), create_graph=True)
    return torch.autograd.grad(first, inputs, [s.to(f) for s, f in zip(seconds, first, strict=True)])


def clear(exact, eager):
    """A float64 map and the same in the dtype at hand agree where the map is cut off."""
    return torch.equal(exact > 0, eager > 0)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_matches_reference(impl, shape, dtype, last):
    inputs, grad = make(shape, dtype, last=last), torch.randn(shape[0], *shape[2:]).to(dtype)
    exact, eager = run(reference, [t.double() for t in inputs], grad), run(reference, inputs, grad)
    assert clear(exact[0], eager[0])
    assert_no_worse(run(impl, inputs, grad), exact, eager, ulps=16 if dtype == torch.float64 else 4)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_second_order_matches_reference(impl, dtype, last):
    shape = (3, 40, 4, 6)
    inputs, grad = make(shape, dtype, last=last), torch.randn(3, 4, 6, dtype=dtype)
    seconds = torch.randn(shape), torch.randn(shape[:2])
    exact = run_twice(reference, [t.double() for t in inputs], grad.double(), seconds)
    assert_no_worse(run_twice(impl, inputs, grad, seconds), exact, run_twice(reference, inputs, grad, seconds), ulps=16)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 140), st.integers(1, 6), st.integers(1, 30), st.booleans())
def test_any_shape(b, c, h, w, last):
    inputs, grad = make((b, c, h, w), torch.float32, last=last, seed=c), torch.ones(b, h, w)
    exact, eager = run(reference, [t.double() for t in inputs], grad), run(reference, inputs, grad)
    if clear(exact[0], eager[0]):
        assert_no_worse(run(grad_cam, inputs, grad), exact, eager, ulps=8)


def test_published_maps(impl):
    # TV-CASN's maps are relu(S((6, 4), ...)): one channel of weight one, and a channel of weight minus one
    field = torch.sin(0.7 * torch.arange(24, dtype=torch.float64) + 0.1).view(1, 1, 6, 4)
    torch.testing.assert_close(impl(field, torch.ones(1, 1, dtype=torch.float64))[0].cpu(), field[0, 0].relu())
    torch.testing.assert_close(impl(field, -torch.ones(1, 1, dtype=torch.float64))[0].cpu(), (-field[0, 0]).relu())
    rows = impl(field, torch.ones(1, 1, dtype=torch.float64))[0].cpu().amax(1)
    profile = (rows - rows.min()) / (rows.max() - rows.min())
    want = torch.tensor([0.997613, 0, 0.998992, 0.735781, 0.659325, 1], dtype=torch.float64)
    torch.testing.assert_close(profile, want, atol=1e-6, rtol=0)


def test_dead_map_passes_no_gradient(impl):
    features, weights = torch.rand(1, 4, 2, 2), -torch.ones(1, 4)
    out, *grads = run(impl, [features, weights], torch.ones(1, 2, 2))
    assert out.eq(0).all() and all(g.eq(0).all() for g in grads)
    out, *grads = run(impl, [torch.zeros(1, 4, 2, 2), torch.ones(1, 4)], torch.ones(1, 2, 2))  # exactly zero: cut off
    assert out.eq(0).all() and all(g.eq(0).all() for g in grads)


def test_nan_and_infinity_stay_in_their_cell(impl):
    features, weights = make((2, 9, 3, 3), torch.float32)
    features[0, 4, 1, 2] = torch.nan
    features[1, 4, 0, 0] = torch.inf
    got, want = impl(features, weights).cpu(), reference(features, weights)
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())


def test_empty(impl):
    for shape in ((0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2)):
        out = run(impl, make(shape), torch.zeros(shape[0], *shape[2:]))
        assert torch.equal(out[0].cpu(), torch.zeros(shape[0], *shape[2:], dtype=torch.float64))
        assert torch.equal(out[2].cpu(), torch.zeros(shape[:2], dtype=torch.float64))


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_gradgradcheck(last):
    inputs = [t.requires_grad_() for t in make((2, 3, 2, 3), last=last, seed=3)]
    assert reference(*inputs).min(dim=0).values.max() >= 0
    assert torch.autograd.gradgradcheck(grad_cam, inputs)


@pytest.mark.parametrize("which", [(True, False), (False, True)])
def test_gradient_of_one_input_only(which):
    inputs = [t.requires_grad_(n) for t, n in zip(make((2, 3, 2, 3)), which, strict=True)]
    assert torch.autograd.gradgradcheck(grad_cam, inputs)


F, W = torch.ones(2, 3, 4, 5), torch.ones(2, 3)
BAD = [
    ((F.long(), W), TypeError, "expected features of dtype float32"),
    ((F[0], W), ValueError, r"features \(B, C, H, W\) and weights \(B, C\)"),
    ((F, W[:, :2]), ValueError, r"got \(2, 3, 4, 5\) and \(2, 2\)"),
    ((F, W.to("meta")), ValueError, "weights on features's device"),
]


@pytest.mark.parametrize("args,error,words", BAD)
def test_rejects(args, error, words):
    with pytest.raises(error, match=words):
        grad_cam(*args)
