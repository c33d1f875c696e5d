# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""query_lstm_cell against its float64 reference: gate order, broadcast query, memory formats."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_implementations import every_implementation

from reidfast.ops import query_lstm_cell
from reidfast.ops.reference.query_lstm_cell import query_lstm_cell as reference
from reidfast.testing import FLOATS, assert_no_worse, shape_id

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 17, 4, 4), (2, 64, 14, 14)]  # B, Dh, H, W
impl = every_implementation("query_lstm_cell")


def make(shape, dtype=torch.float64, *, shared=False, last=False, seed=0, scale=2.0):
    b, d, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = [(b, 4 * d, h, w), (1 if shared else b, 4 * d, h, w), (b, d, h, w)]
    tensors = [(scale * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype) for s in sizes]
    return [t.contiguous(memory_format=torch.channels_last) for t in tensors] if last else tensors


def run(function, inputs, grads):
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = function(*inputs)
    return (*out, *torch.autograd.grad(out, inputs, [g.to(o) for g, o in zip(grads, out, strict=True)]))


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_matches_reference(impl, shape, dtype, shared, last):
    inputs = make(shape, dtype, shared=shared, last=last)
    grads = [torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)]
    exact = run(reference, [t.double() for t in inputs], grads)
    assert_no_worse(run(impl, inputs, grads), exact, run(reference, inputs, grads))


def test_gate_order_is_i_f_g_o(impl):
    big, zero = 50.0, torch.zeros(1, 4, 1, 1)
    state = torch.full((1, 1, 1, 1), 0.75)

    def step(i, f, g, o):
        h, c = impl(torch.tensor([i, f, g, o]).view(1, 4, 1, 1), zero, state)
        return h.item(), c.item()

    assert step(-big, big, big, big)[1] == pytest.approx(0.75)  # keeps the state, lets nothing in
    assert step(big, -big, big, -big) == (pytest.approx(0), pytest.approx(1))  # the new input, not shown
    assert step(big, -big, -big, big)[0] == pytest.approx(torch.tensor(-1.0).tanh().item())


def test_one_gradient_at_a_time():
    inputs = [t.requires_grad_() for t in make((2, 3, 4, 5), shared=True)]
    want = reference(*inputs)
    for k in range(2):
        got = torch.autograd.grad(query_lstm_cell(*inputs)[k].square().sum(), inputs)
        torch.testing.assert_close(got, torch.autograd.grad(want[k].square().sum(), inputs, retain_graph=True))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.integers(1, 9), st.booleans(), st.sampled_from(FLOATS)
)
def test_any_shape(b, d, h, w, shared, dtype):
    inputs = make((b, d, h, w), dtype, shared=shared, seed=b + 10 * d, scale=4.0)
    assert_no_worse(query_lstm_cell(*inputs), reference(*(t.double() for t in inputs)), reference(*inputs), ulps=6)


def test_extreme_gates_stay_finite(impl):
    values = torch.tensor([-1e4, -90.0, -60.0, 0.0, 60.0, 90.0, 1e4])
    gates = torch.cartesian_prod(values, values, values, values).t().reshape(1, 4, -1, 1)
    inputs = [gates, torch.zeros_like(gates), torch.full((1, 1, gates.shape[2], 1), -0.5)]
    out = run(impl, inputs, [torch.ones_like(inputs[2])] * 2)
    assert all(t.isfinite().all() for t in out)
    exact = run(reference, [t.double() for t in inputs], [torch.ones_like(inputs[2])] * 2)
    for got, want in zip(out, exact, strict=True):
        torch.testing.assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-6)


def test_nan_stays_in_its_cell(impl):
    gates, query, c = make((1, 2, 3, 3), torch.float32)
    gates[0, 0, 1, 1] = torch.nan
    h, c_new = impl(gates, query, c)
    assert h.isnan().sum() == 1 and c_new.isnan().sum() == 1 and bool(h[0, 0, 1, 1].isnan())


def test_strides_and_format_of_the_result():
    gates, query, c = make((2, 6, 3, 4))
    want = reference(gates, query, c)
    odd = gates.transpose(2, 3).contiguous().transpose(2, 3)
    for g in (gates, odd, gates.contiguous(memory_format=torch.channels_last)):
        got = query_lstm_cell(g, query, c.expand_as(c))
        torch.testing.assert_close(tuple(got), want)
    assert got.h.is_contiguous(memory_format=torch.channels_last)
    expanded = query[:1].expand(2, -1, -1, -1)
    torch.testing.assert_close(tuple(query_lstm_cell(gates, expanded, c)), reference(gates, expanded, c))


def test_empty(impl):
    for shape in ((0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2)):
        out = run(impl, make(shape), [torch.zeros(shape)] * 2)
        assert out[0].shape == shape and out[2].shape == (shape[0], 4 * shape[1], *shape[2:])
    shared = run(impl, make((0, 3, 2, 2), shared=True), [torch.zeros(0, 3, 2, 2)] * 2)
    assert torch.equal(shared[3].cpu(), torch.zeros(1, 12, 2, 2, dtype=torch.float64))


G, C = torch.ones(2, 8, 3, 3), torch.ones(2, 2, 3, 3)
BAD = [
    ((G.long(), G, C), TypeError, "expected gates of dtype float32"),
    ((G, G, C[:, :1]), ValueError, r"gates \(B, 4\*Dh, H, W\)"),
    ((G, G, C[:1]), ValueError, r"and c \(B, Dh, H, W\)"),
    ((G, G[:, :4], C), ValueError, r"or \(1, 4\*Dh, H, W\)"),
    ((G, G[..., :1], C), ValueError, "query_gates of that shape"),
    ((torch.ones(3, 8, 3, 3), G, torch.ones(3, 2, 3, 3)), ValueError, "query_gates of that shape"),
    ((G[0], G, C), ValueError, "expected gates"),
    ((G, G.to("meta"), C), ValueError, "query_gates on gates's device"),
]


@pytest.mark.parametrize("args,error,words", BAD)
def test_rejects(args, error, words):
    with pytest.raises(error, match=words):
        query_lstm_cell(*args)
