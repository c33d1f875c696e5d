# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Attention over the frames of a tracklet, and the pools it is compared with."""

import pytest
import torch

from reidfast.nn import TemporalAttention, TimePool


def test_attention_is_the_formula_and_starts_as_the_mean():
    module = TemporalAttention(3, 5).double()
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(module(x), x.mean(1))
    torch.nn.init.normal_(module.weight)
    for b in range(2):
        for k in range(3):
            t = (x[b, :, k] @ module.weight[k]).softmax(0)
            torch.testing.assert_close(module(x)[b, k], (t[:, None] * x[b, :, k]).sum(0))
            torch.testing.assert_close(module.weights(x)[b, :, k], t)


def test_attention_gradcheck():
    module = TemporalAttention(2, 3, standardize=2.0).double()
    torch.nn.init.normal_(module.weight)
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))
    module(x).sum().backward()
    assert bool(module.weight.grad.abs().sum() > 0)


@pytest.mark.parametrize("kind", ["average", "max", "lstm", "gru"])
@pytest.mark.parametrize("cuts", [[7], [3, 4], [1] * 7], ids=str)
def test_pool_in_chunks_equals_one_pass(kind, cuts):
    pool = TimePool(kind, 5, hidden=4).double()
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    state = None
    for part in x.split(cuts, 1):
        state = pool.step(part, state)
    torch.testing.assert_close(pool.finish(state), pool(x))
    assert pool(x).shape == (2, pool.dim) and pool.dim == (4 if kind in ("lstm", "gru") else 5)
    if kind in ("average", "max"):
        torch.testing.assert_close(pool(x), x.mean(1) if kind == "average" else x.amax(1))
        torch.testing.assert_close(pool(x.flip(1)), pool(x))


def test_rejects():
    with pytest.raises(ValueError, match=r"expected features \(B, N, 3, 5\), got \(2, 4, 5, 3\)"):
        TemporalAttention(3, 5)(torch.zeros(2, 4, 5, 3))
    with pytest.raises(ValueError, match="kind to be one of 'average', 'max', 'lstm', 'gru', got 'mean'"):
        TimePool("mean", 4)
