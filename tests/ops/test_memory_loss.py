# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""memory_loss against its float64 reference and the published formulas, with k best rows and with targets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_implementations import every_implementation
from torch.nn.functional import cross_entropy, normalize

import reidfast
from reidfast.ops import memory_loss, memory_update_
from reidfast.ops.reference.memory_loss import memory_loss as reference
from reidfast.testing import FLOATS, assert_no_worse, peak_memory, shape_id

METRICS = ("sqeuclidean", "dot")
SHAPES = [  # M (0: the 2-D form), B, N, d: one, odd, past a tile, past a chunk, past a block of queries
    ((0, 1, 2, 1), 1),
    ((2, 3, 5, 7), 3),
    ((6, 40, 700, 64), 10),
    ((1, 5, 9001, 33), 4),
    ((0, 131, 600, 300), 7),
]
OP = reidfast.implementations("memory_loss")["native"]
impl = every_implementation("memory_loss")
kernel = every_implementation("memory_loss", reference=False)


def floor(dtype):
    """In float64 the reference is the truth itself, so that its error, zero, is no yardstick."""
    return 512 if dtype == torch.float64 else 16


def problem(shape, dtype=torch.float64, seed=0):
    parts, queries, rows, dim = shape
    generator = torch.Generator().manual_seed(seed)
    lead = (parts,) if parts else ()
    x = normalize(torch.randn(*lead, queries, dim, generator=generator, dtype=torch.float64), dim=-1)
    bank = normalize(torch.randn(*lead, rows, dim, generator=generator, dtype=torch.float64), dim=-1)
    targets = torch.randint(0, rows, (queries,), generator=generator)
    exclude = torch.where(torch.rand(queries, generator=generator) < 0.2, -1, (targets + 1) % rows)
    return x.to(dtype), bank.to(dtype), targets, exclude


def run(function, x, bank, k, targets, scale, metric, exclude, seed=1):
    """The loss and the gradients of x and, with targets, of the bank for random upstream gradients."""
    leaves = [x.detach().requires_grad_()]
    bank = bank.detach()
    if targets is not None:
        leaves.append(bank.requires_grad_())
    loss = function(leaves[0], bank, k, targets, scale, metric, exclude)
    grad = torch.randn(loss.shape, generator=torch.Generator().manual_seed(seed))
    return (loss, *torch.autograd.grad(loss, leaves, grad.to(loss)))


@pytest.mark.parametrize("mode", ["k", "targets"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", FLOATS, ids=shape_id)
@pytest.mark.parametrize("shape,k", SHAPES, ids=shape_id)
def test_matches_reference(kernel, shape, k, dtype, metric, mode):
    x, bank, targets, exclude = problem(shape, dtype)
    args = (k, None, 9.0, metric, exclude) if mode == "k" else (None, targets, 9.0, metric, exclude)
    got = run(kernel, x, bank, *args)
    assert got[0].dtype == torch.promote_types(dtype, torch.float32) and got[1].dtype == dtype
    assert_no_worse(
        got, run(reference, x.double(), bank.double(), *args), run(reference, x, bank, *args), ulps=floor(dtype)
    )


# The loss and the norm of the batch gradient that the published code gives
PEDAL = [
    (1, 1, 0.92143867, 0.35183467),
    (1, 3, 0.16968321, 0.13536324),
    (5, 1, 0.27491973, 0.41311996),
    (15, 1, 0.12853930, 0.58681191),
    (5, 3, 0.00212316, 0.01695297),
]


def sines(shape, a, b):
    return torch.sin(a * torch.arange(torch.Size(shape).numel(), dtype=torch.float64) + b).view(shape)


@pytest.mark.parametrize("scale,k,loss,norm", PEDAL)
def test_vector_pedal(impl, scale, k, loss, norm):
    x = normalize(sines((2, 3, 4), 0.7, 0.1), dim=-1).requires_grad_()
    bank = normalize(sines((2, 8, 4), 0.37, 0.5), dim=-1)
    got = impl(x, bank, k, None, float(scale), "sqeuclidean", torch.tensor([1, 4, 7])).mean()
    assert got.item() == pytest.approx(loss, abs=1e-8)
    got.backward()
    assert x.grad.norm().item() == pytest.approx(norm, abs=1e-8)
    if (scale, k) == (1, 1):
        want = torch.tensor([0.05820145, 0.01762872, -0.02532999, -0.06486039], dtype=torch.float64)
        torch.testing.assert_close(x.grad[0, 0], want, atol=1e-8, rtol=0)


def test_vector_oim(impl):
    table, x = normalize(sines((4, 3), 0.5, 0.2), dim=-1), normalize(sines((2, 3), 0.9, 0.1), dim=-1).requires_grad_()
    labels = torch.tensor([2, 0])
    loss = impl(x, table, None, labels, 30.0, "dot", None).mean()
    assert loss.item() == pytest.approx(56.99263105, rel=1e-8)
    loss.backward()
    want = torch.tensor([3.44885003, 16.17983857, 24.94943834], dtype=torch.float64)
    # the expected gradient is that of the mean over the batch
    torch.testing.assert_close(x.grad[0] * (want.norm() / x.grad[0].norm()), want, atol=1e-6, rtol=0)
    torch.testing.assert_close(x.grad[0], want, atol=1e-7, rtol=0)
    memory_update_(table, labels, x.detach(), momentum=0.5, normalize=True)
    torch.testing.assert_close(table[0], table.new_tensor([0.97001513, 0.23110370, -0.07524449]), atol=1e-8, rtol=0)
    torch.testing.assert_close(table[2], table.new_tensor([0.11839942, 0.79371838, -0.59665125]), atol=1e-8, rtol=0)


def test_targets_are_cross_entropy(impl):
    x, bank, targets, _ = problem((0, 9, 50, 6))
    want = cross_entropy(x @ bank.T / 0.05, targets, reduction="none")
    torch.testing.assert_close(impl(x, bank, None, targets, 20.0, "dot", None).cpu(), want)


def test_no_cancellation(impl):
    """The best rows hold all the mass: the loss is tiny but right, in float32, and so is its gradient."""
    x, bank, targets, _ = problem((0, 20, 300, 32), torch.float32)
    bank[targets] = normalize(x + 0.02 * torch.randn(20, 32), dim=-1)
    for args in ((1, None, 60.0, "sqeuclidean", None), (None, targets, 100.0, "dot", None)):
        exact = run(reference, x.double(), bank.double(), *args)
        got = run(impl, x, bank, *args)
        assert 0 < exact[0].min() < 1e-12
        torch.testing.assert_close(got[0].double().cpu(), exact[0], rtol=2e-4, atol=0)
        torch.testing.assert_close(got[1].double().cpu(), exact[1], rtol=2e-3, atol=1e-30)


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_but_the_best(impl, metric):
    x, bank, _, exclude = problem((2, 4, 6, 3))
    x.requires_grad_()
    for k, skip in ((6, None), (5, exclude.clamp(min=0))):
        loss = impl(x, bank, k, None, 3.0, metric, skip)
        assert torch.equal(loss.cpu(), torch.zeros_like(loss.cpu()))
        assert torch.equal(torch.autograd.grad(loss.sum(), x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("scale", [0.0, -4.0, 1e-6, 300.0, 1e6])
@pytest.mark.parametrize("metric", METRICS)
def test_any_scale_is_safe(impl, scale, metric):
    x, bank, targets, exclude = problem((0, 6, 400, 16), torch.float32)
    for args in ((3, None, scale, metric, exclude), (None, targets, scale, metric, exclude)):
        got = run(impl, x, bank, *args)
        assert all(bool(t.isfinite().all()) for t in got) and bool((got[0] >= 0).all())
        if scale < 1e6:  # beyond, float32 inputs say nothing about which row is nearer
            assert_no_worse(got, run(reference, x.double(), bank.double(), *args), run(reference, x, bank, *args))


def test_large_features(impl):
    x, bank, targets, exclude = problem((0, 6, 400, 16), torch.float32)
    x, bank = 50 * x, 50 * bank
    for args in ((3, None, 15.0, "sqeuclidean", exclude), (None, targets, 15.0, "sqeuclidean", exclude)):
        got = run(impl, x, bank, *args)
        assert_no_worse(got, run(reference, x.double(), bank.double(), *args), run(reference, x, bank, *args))


def test_nan(impl):
    x, bank, targets, _ = problem((2, 3, 30, 5), torch.float32)
    x[0, 1, 0] = torch.nan
    loss, grad = run(impl, x, bank, 3, None, 2.0, "dot", None)
    assert loss.isnan().tolist() == [[False, True, False], [False] * 3]
    assert grad.isnan().all(-1).tolist() == [[False, True, False], [False] * 3]
    bank[1, 20] = torch.nan
    assert impl(x, bank, None, targets, 2.0, "sqeuclidean", None).isnan().tolist() == [[False, True, False], [True] * 3]


def test_empty_inputs(impl):
    none = torch.zeros(0, dtype=torch.int64)
    assert impl(torch.zeros(0, 3), torch.ones(5, 3), 2, None, 1.0, "dot", None).shape == (0,)
    assert impl(torch.zeros(0, 3), torch.ones(5, 3), None, none, 1.0, "dot", none).shape == (0,)
    assert impl(torch.zeros(0, 4, 3), torch.ones(0, 5, 3), 2, None, 1.0, "dot", None).shape == (0, 4)
    x = torch.zeros(0, 3, requires_grad=True)
    impl(x, torch.ones(5, 3), 2, None, 1.0, "dot", None).sum().backward()
    assert x.grad.shape == (0, 3)


def test_bank_with_k_is_a_constant(impl):
    x, bank, _, _ = problem((0, 4, 30, 5))
    x, bank = x.requires_grad_(), bank.requires_grad_()
    assert torch.autograd.grad(impl(x, bank, 3, None, 2.0, "dot", None).sum(), bank, allow_unused=True) == (None,)


def test_bank_may_change_before_backward_with_k():
    x, bank, _, exclude = problem((2, 4, 30, 5))
    want = run(OP, x, bank, 3, None, 2.0, "sqeuclidean", exclude)[1]
    x.requires_grad_()
    loss = memory_loss(x, bank, 3, scale=2.0, exclude=exclude)
    memory_update_(bank, torch.arange(4), x.detach(), momentum=0.5)
    grad = torch.randn(loss.shape, generator=torch.Generator().manual_seed(1)).to(loss)
    assert torch.equal(torch.autograd.grad(loss, x, grad)[0], want)


@settings(deadline=None, max_examples=40)
@given(
    parts=st.integers(0, 3),
    queries=st.integers(0, 9),
    rows=st.integers(3, 700),
    dim=st.integers(1, 40),
    share=st.floats(0, 1),
    by_target=st.booleans(),
    metric=st.sampled_from(METRICS),
    scale=st.sampled_from([0.0, 0.1, 5.0, 100.0]),
    seed=st.integers(0, 2**20),
)
def test_property(parts, queries, rows, dim, share, by_target, metric, scale, seed):
    x, bank, targets, exclude = problem((parts, queries, rows, dim), torch.float64, seed)
    k = max(1, round(share * (rows - 1)))
    args = (None, targets, scale, metric, exclude) if by_target else (k, None, scale, metric, exclude)
    for a, b in zip(run(OP, x, bank, *args), run(reference, x, bank, *args), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def test_memory_does_not_grow_with_the_bank():
    setup = "x, w = torch.randn(2, 40, 256), torch.randn(2, {rows}, 256)\nreidfast.ops.memory_loss(x, w, 10, scale=1.0)"
    call = "reidfast.ops.memory_loss(x.requires_grad_(), w, 10, scale=1.0).sum().backward()"
    small, large = (peak_memory(setup.format(rows=rows), call) for rows in (20_000, 80_000))
    # one matrix (M, B, N) alone would be 24 MiB
    assert large < small + 4 * 2**20 and large < 24 * 2**20, f"{small / 2**20:.1f} and {large / 2**20:.1f} MiB"


X, W, T = torch.randn(2, 4, 3), torch.randn(2, 9, 3), torch.tensor([0, 1, 2, 3])
BAD = [
    ((X, W), {}, ValueError, "exactly one of k and targets, got neither"),
    ((X, W, 2), {"targets": T}, ValueError, "exactly one of k and targets, got both"),
    ((X, W, 10), {}, ValueError, r"N=9\), got k=10"),
    ((X, W, 9), {"exclude": T}, ValueError, "usable rows .*8 of N=9.*k=9"),
    ((X, W), {"targets": T[:3]}, ValueError, r"targets of shape \(B,\) with B=4, got \(3,\)"),
    ((X, W), {"targets": T.int()}, TypeError, "targets of dtype int64"),
    ((X, W), {"targets": T - 1}, ValueError, "targets from 0 to N-1=8"),
    ((X, W), {"targets": T + 6}, ValueError, "targets from 0 to N-1=8"),
    ((X, W), {"targets": T, "exclude": torch.tensor([-1, -1, 2, -1])}, ValueError, "targets that are not excluded"),
    ((X, W, 2), {"exclude": T + 6}, ValueError, "exclude from -1 to N-1=8"),
    ((X, W[0], 2), {}, ValueError, r"got \(2, 4, 3\) and \(9, 3\)"),
    ((X, W, 2), {"scale": float("nan")}, ValueError, "finite scale"),
    ((X, W, 2), {"metric": "l2"}, ValueError, "'sqeuclidean', 'dot', got 'l2'"),
    ((X, W.numpy(), 2), {}, TypeError, "bank to be a torch.Tensor"),
]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("args,options,error,words", BAD)
def test_rejects(args, options, error, words, backend):
    with reidfast.use_backend(backend), pytest.raises(error, match=words):
        memory_loss(*args, **{"scale": 1.0} | options)
