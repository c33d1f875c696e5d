# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""query_lstm_cell against its float64 reference: gate order, broadcast query, memory formats, autograd."""

import pytest
import torch
from cuda_emu import emulated
from hypothesis import given, settings
from hypothesis import strategies as st

import reidfast
from reidfast import implementations
from reidfast.ops import query_lstm_cell
from reidfast.ops.reference.query_lstm_cell import query_lstm_cell as reference
from reidfast.testing import FLOATS, assert_no_worse, devices, isa, nan_poison, shape_id, threads

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 17, 4, 4), (2, 64, 14, 14)]  # B, Dh, H, W
OP = reidfast.implementations("query_lstm_cell")["native"]


@pytest.fixture(
    params=[*((d, n) for d in devices() for n in implementations("query_lstm_cell", d)), ("cpu", "cuda_emu")],
    ids=shape_id,
)
def impl(request):
    device, name = request.param
    function = emulated("query_lstm_cell") if name == "cuda_emu" else implementations("query_lstm_cell", device)[name]
    return lambda *inputs: function(*(t.to(device) for t in inputs))


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


@pytest.mark.parametrize("shared", [False, True])
def test_gradcheck(shared):
    inputs = [t.requires_grad_() for t in make((2, 2, 3, 2), shared=shared)]
    assert torch.autograd.gradcheck(lambda *t: tuple(query_lstm_cell(*t)), inputs)


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
def test_opcheck(needs_grad, last):
    for shared in (False, True):
        inputs = [t.requires_grad_(needs_grad) for t in make((2, 3, 4, 2), torch.float32, shared=shared, last=last)]
        torch.library.opcheck(torch.ops.reidfast.query_lstm_cell.default, tuple(inputs))


def test_no_double_backward():
    inputs = [t.requires_grad_() for t in make((1, 2, 2, 2))]
    (grad,) = torch.autograd.grad(query_lstm_cell(*inputs).h.sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="query_lstm_cell: double backward is not implemented"):
        grad.sum().backward()


def test_compiles_without_breaks():
    compiled = torch.compile(lambda *t: tuple(query_lstm_cell(*t)), fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 3, 4, 5), (3, 4, 6, 7)):
        inputs, grads = make(shape, torch.float32, shared=True), [torch.randn(shape)] * 2
        torch.testing.assert_close(run(compiled, inputs, grads), run(query_lstm_cell, inputs, grads))


def test_every_output_is_written():
    with nan_poison():
        out = run(OP, make((2, 5, 3, 3), torch.float32, shared=True), [torch.ones(2, 5, 3, 3)] * 2)
    assert all(t.isfinite().all() for t in out)


def test_threads_and_instruction_sets():
    inputs, grads = make((3, 40, 14, 14), torch.float32, shared=True), [torch.randn(3, 40, 14, 14)] * 2
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(run(OP, inputs, grads))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    exact, eager = run(reference, [t.double() for t in inputs], grads), run(reference, inputs, grads)
    for name in ("default", "avx2", "avx512"):
        try:
            with isa(name):
                assert_no_worse(run(OP, inputs, grads), exact, eager)
        except ValueError:
            continue


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
