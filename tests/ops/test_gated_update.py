# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""gated_update against its float64 reference: memory formats, saturated gates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_implementations import every_implementation

from reidfast.ops import gated_update
from reidfast.ops.reference.gated_update import gated_update as reference
from reidfast.testing import FLOATS, assert_no_worse, shape_id

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 130, 3, 3), (2, 300, 8, 8)]  # B, C, H, W
impl = every_implementation("gated_update")


def make(shape, dtype=torch.float64, *, last=False, seed=0):
    b, c, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = ((b, c), (b, h, w), shape, shape)
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in sizes]
    if last:
        tensors[2:] = [t.contiguous(memory_format=torch.channels_last) for t in tensors[2:]]
    return tensors


def run(function, inputs, grad):
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = function(*inputs)
    return (out, *torch.autograd.grad(out, inputs, grad.to(out)))


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_matches_reference(impl, shape, dtype, last):
    inputs, grad = make(shape, dtype, last=last), torch.randn(shape).to(dtype)
    exact = run(reference, [t.double() for t in inputs], grad)
    assert_no_worse(run(impl, inputs, grad), exact, run(reference, inputs, grad))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 140), st.integers(1, 6), st.integers(1, 9), st.booleans(), st.sampled_from(FLOATS)
)
def test_any_shape(b, c, h, w, last, dtype):
    inputs, grad = make((b, c, h, w), dtype, last=last, seed=c), torch.ones(b, c, h, w, dtype=dtype)
    exact = run(reference, [t.double() for t in inputs], grad)
    assert_no_worse(run(gated_update, inputs, grad), exact, run(reference, inputs, grad), ulps=8)


def test_saturated_gates(impl):
    channel, spatial = torch.tensor([[1e4, -1e4, 100.0, -100.0]]), torch.ones(1, 1, 1)
    state, x = torch.full((1, 4, 1, 1), 3.0), torch.full((1, 4, 1, 1), -5.0)
    out, *grads = run(impl, [channel, spatial, state, x], torch.ones(1, 4, 1, 1))
    assert out.flatten().tolist() == [-5.0, 3.0, -5.0, 3.0]
    assert all(g.isfinite().all() for g in grads)


def test_complement_does_not_cancel():
    # 1 - sigmoid(20) = 2.06e-9 is lost in float32 when written 1 - z
    big = [torch.full((1, 1), 20.0), torch.ones(1, 1, 1), torch.full((1, 1, 1, 1), 1e9), torch.zeros(1, 1, 1, 1)]
    torch.testing.assert_close(
        gated_update(*big).double(),
        torch.sigmoid(torch.tensor(-20.0).double()).view(1, 1, 1, 1) * 1e9,
        rtol=1e-6,
        atol=0,
    )


def test_nan_stays_in_its_position(impl):
    channel, spatial, state, x = make((2, 3, 2, 2), torch.float32)
    spatial[1, 0, 1] = torch.nan
    assert impl(channel, spatial, state, x).isnan().nonzero().tolist() == [[1, c, 0, 1] for c in range(3)]


def test_strides_and_format_of_the_result():
    channel, spatial, state, x = make((2, 6, 3, 4))
    want = reference(channel, spatial, state, x)
    last = x.contiguous(memory_format=torch.channels_last)
    odd = x.transpose(2, 3).contiguous().transpose(2, 3)
    for value in (odd, x, last):
        got = gated_update(
            channel.t().contiguous().t(), spatial.transpose(1, 2).contiguous().transpose(1, 2), state, value
        )
        torch.testing.assert_close(got, want)
    assert got.is_contiguous(memory_format=torch.channels_last)
    one = torch.ones(1, 1, dtype=x.dtype).expand(2, 6)
    torch.testing.assert_close(gated_update(one, spatial, state, x), reference(one, spatial, state, x))


def test_empty(impl):
    for shape in ((0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2)):
        out = run(impl, make(shape), torch.zeros(shape))
        assert out[0].shape == shape
        assert torch.equal(out[1].cpu(), torch.zeros(shape[:2], dtype=torch.float64))
        assert torch.equal(out[2].cpu(), torch.zeros(shape[0], *shape[2:], dtype=torch.float64))


CH, SP, X = torch.ones(2, 3), torch.ones(2, 4, 5), torch.ones(2, 3, 4, 5)
BAD = [
    ((CH.long(), SP, X, X), TypeError, "expected channel of dtype float32"),
    ((CH[:, :2], SP, X, X), ValueError, r"expected channel \(B, C\)"),
    ((CH, SP[:, :3], X, X), ValueError, r"spatial \(B, H, W\)"),
    ((CH, SP, X[:1], X), ValueError, r"state and x \(B, C, H, W\)"),
    ((CH, SP, X[0], X[0]), ValueError, r"got \(2, 3\), \(2, 4, 5\), \(3, 4, 5\) and \(3, 4, 5\)"),
    ((CH.to("meta"), SP, X, X), ValueError, "channel on x's device"),
]


@pytest.mark.parametrize("args,error,words", BAD)
def test_rejects(args, error, words):
    with pytest.raises(error, match=words):
        gated_update(*args)
