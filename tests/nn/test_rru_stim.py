# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""RRU and STIM: the published values, the hoisted recursion against the plain one, and tracks in chunks."""

import copy
import math

import pytest
import torch

from reidfast.nn import RRU, STIM
from reidfast.nn.rows import rows_product
from reidfast.nn.rru import reference_rru


def wave(shape, a, b):
    """sin(a n + b), row-major."""
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).view(shape)


def published(parameter, k):
    """The weights of both vectors."""
    parameter.data = 0.5 * wave(tuple(parameter.shape), 0.01 * (k + 1), 0.3 * k)


def vector_rru():
    rru = RRU(4).double()
    for parameter, k in ((rru.reduce, 0), (rru.spatial_in, 3), (rru.spatial_out, 4), (rru.channel, 5)):
        published(parameter.weight, k)
    return rru


@pytest.mark.parametrize(
    "training,total,absolute,place",
    [
        (False, 94.86912683, 393.73310327, (-0.49459164, 0.19114617, 0.55113774, 0.31267334)),
        (True, 88.20675384, 450.24737440, (0.13239820, -0.35822599, 0.25496390, 0.81222909)),
    ],
    ids=["eval", "train"],
)
def test_vector_rru(training, total, absolute, place):
    x = wave((1, 3, 4, 8, 8), 0.02, 0.1)
    refined, _ = vector_rru().train(training)(x)
    assert abs(refined.sum().item() - total) < 1e-7 and abs(refined.abs().sum().item() - absolute) < 1e-7
    want = torch.tensor(place, dtype=torch.float64)
    torch.testing.assert_close(refined[0, 2, :, 3, 5], want, atol=1e-7, rtol=0)
    assert torch.equal(refined[:, 0], x[:, 0])


def test_vector_stim():  # the published FuseNet(4, 6)
    stim = STIM(4, 6).double().eval()
    published(stim.reduce.weight, 6)
    published(stim.mix.weight, 9)
    refined, _ = vector_rru().eval()(wave((2, 3, 4, 8, 8), 0.02, 0.1))
    want = torch.tensor([0.83578662, 0.85655416, 0.87521349, 0.89171870, 0.90602914, 0.91810961], dtype=torch.float64)
    for maps in (refined, refined.contiguous()):  # time outermost in memory, and batch outermost
        torch.testing.assert_close(stim(maps)[1], want, atol=1e-7, rtol=0)
    part = refined.mean((1, 4))
    assert abs(part.sum().item() + 0.55503398) < 1e-7
    want = [-0.63895727, -0.60716237, -0.55951826, -0.49426269, -0.41499893, -0.32747293, -0.23420883, -0.13346156]
    torch.testing.assert_close(part[1, 2], torch.tensor(want, dtype=torch.float64), atol=1e-7, rtol=0)


def test_published_sizes():
    rru, stim = RRU(), STIM()
    assert sum(p.numel() for p in rru.parameters()) == 1_589_760
    assert sum(p.numel() for m in (rru, stim) for p in m.parameters()) == 3_884_544


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("flip", [False, True])
def test_hoisted_equals_step_by_step(activation, training, flip):
    """Values, every gradient, and what the batch norms remember."""
    rru = RRU(5, (4, 3), hidden=7, spatial_hidden=6, activation=activation, flip_difference=flip).double()
    rru.train(training)
    plain = copy.deepcopy(rru)
    x = torch.randn(3, 4, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    upstream = torch.randn(3, 4, 5, 4, 3, dtype=torch.float64)
    ours, want = rru(x)[0], reference_rru(plain, y)
    torch.testing.assert_close(ours, want, atol=1e-12, rtol=1e-12)
    ours.backward(upstream)
    want.backward(upstream)
    torch.testing.assert_close(x.grad, y.grad, atol=1e-11, rtol=1e-10)
    for (name, a), b in zip(rru.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-11, rtol=1e-10, msg=name)
    for a, b in zip(rru.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck():
    rru = RRU(2, (2, 2), hidden=3, spatial_hidden=3).double()
    x = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: rru(v)[0], (x,))
    stim = STIM(2, 3, hidden=3).double()
    assert torch.autograd.gradcheck(stim, (x,))


@pytest.mark.parametrize("cuts", [[11], [1, 10], [1, 1, 9], [4, 4, 3], [2, 1, 8], [1] * 11], ids=str)
def test_chunks_equal_one_pass(cuts):
    rru, stim = RRU(5, (4, 3), hidden=7).double().eval(), STIM(5, 6, hidden=4).double().eval()
    x = torch.randn(2, 11, 5, 4, 3, dtype=torch.float64)
    whole = rru(x)[0]
    state = pooled = None
    pieces = []
    for part in x.split(cuts, 1):
        refined, state = rru(part, state)
        pieces.append(refined)
        pooled = stim.step(refined, pooled)
        assert pooled.recent.shape[2] <= 2
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(stim.finish(pooled), stim(whole), atol=1e-12, rtol=1e-12)


def test_gate_of_minus_infinity_keeps_and_of_plus_infinity_takes():
    rru = RRU(2, (2, 2), hidden=3).eval()
    x = torch.randn(1, 2, 2, 2, 2)
    for sign in (-1.0, 1.0):
        torch.nn.init.zeros_(rru.spatial_in.weight)
        rru.gates = lambda reduced, s=sign: (torch.full((1, 2), 1e4 * s), torch.ones(1, 2, 2))
        assert torch.equal(rru(x)[0][:, 1], x[:, 0] if sign < 0 else x[:, 1])


def test_rejects():
    with pytest.raises(ValueError, match="activation to be one of 'relu', 'leaky_relu', got 'gelu'"):
        RRU(4, activation="gelu")
    with pytest.raises(ValueError, match=r"RRU: expected channels and grid \(H, W\) of at least 1, got 4 and \(0, 8\)"):
        RRU(4, (0, 8))
    with pytest.raises(ValueError, match=r"expected maps \(B, T, 4, 8, 8\) with T >= 1, got \(1, 3, 4, 8, 4\)"):
        RRU(4)(torch.zeros(1, 3, 4, 8, 4))
    with pytest.raises(ValueError, match=r"STIM: expected maps \(B, T, 4, H, W\), got \(1, 3, 5, 8, 4\)"):
        STIM(4)(torch.zeros(1, 3, 5, 8, 4))


@pytest.mark.parametrize("shape", [(3, 2, 8, 4, 24), (1, 1, 1, 1, 5), (40, 6, 3, 7), (2, 3, 4)])
def test_products_of_rows_are_linear_layers(shape):
    """In single precision by a convolution, in others by a matrix product: the same values and gradients."""
    torch.manual_seed(0)
    x, w = torch.randn(shape), torch.randn(6, shape[-1])
    g = torch.randn(*shape[:-1], 6)
    found, exact = [], []
    for out, dtype in ((found, torch.float32), (exact, torch.float64)):
        leaves = [t.to(dtype).requires_grad_() for t in (x, w)]
        y = rows_product(*leaves)
        out += [y, *torch.autograd.grad(y, leaves, g.to(dtype))]
    assert found[0].dtype == torch.float32 and found[0].shape == g.shape
    torch.testing.assert_close(exact[0], torch.nn.functional.linear(x.double(), w.double()))
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b.detach(), atol=1e-5, rtol=1e-5)


def test_single_precision_follows_the_published_recursion():
    torch.manual_seed(0)
    rru, stim = RRU(12, (8, 4), hidden=16), STIM(12, 8, hidden=16)
    x = torch.randn(3, 5, 12, 8, 4)
    want = reference_rru(copy.deepcopy(rru).double(), x.double())
    refined, _ = rru(x)
    torch.testing.assert_close(refined.double(), want, atol=1e-5, rtol=1e-5)
    again = copy.deepcopy(stim).double()(want)
    torch.testing.assert_close(stim(refined).double(), again, atol=1e-5, rtol=1e-5)
