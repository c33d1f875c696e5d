# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The DiverseAttention module and the DiversityLoss that goes with it."""

import math

import pytest
import torch
from torch import nn

from reidfast import ops
from reidfast.losses import DiversityLoss
from reidfast.nn import DiverseAttention


def wave(shape, a, b):
    """sin(a n + b), row-major."""
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).view(shape)


def test_vector_satt():  # the official module with its linear layer and L2 norm behind the pooling
    module = DiverseAttention(2048, 3).double().eval()
    module.trunk[0].weight.data = 0.05 * wave((64, 2048, 1, 1), 0.013, 0.2)
    module.logits[0].weight.data = wave((3, 64, 1, 1), 0.37, 0.1)
    out = module(wave((2, 2048, 8, 4), 0.0007, 0.3).abs())
    want = torch.tensor([0.02994020, 0.03131987, 0.03261132], dtype=torch.float64)
    torch.testing.assert_close(out.attention[0, :, 0], want, atol=1e-8, rtol=0)
    embedding = nn.functional.normalize(out.pooled @ (0.05 * wave((5, 2048), 0.017, 0.4)).T, dim=-1)
    want = torch.tensor([0.694998, -0.564557, 0.396606, -0.202304, -0.005439], dtype=torch.float64)
    torch.testing.assert_close(embedding[0, 0], want, atol=1e-6, rtol=0)


def test_independent_heads_do_not_share():
    module = DiverseAttention(12, 4, hidden=5, head="independent").double()
    x = torch.randn(2, 12, 4, 3, dtype=torch.float64)
    first, second = module.trunk[0], module.logits[0]
    for k in range(4):  # e_{n,k,l} = w'_k . max(W_k f_{n,l} + b_k, 0) + b'_k
        hidden = torch.einsum("cd,bdhw->bchw", first.weight[5 * k : 5 * k + 5, :, 0, 0], x)
        hidden = torch.relu(hidden + first.bias[5 * k : 5 * k + 5, None, None])
        logits = torch.einsum("c,bchw->bhw", second.weight[k, :, 0, 0], hidden) + second.bias[k]
        torch.testing.assert_close(module(x).attention[:, k], logits.flatten(1).softmax(-1))


@pytest.mark.parametrize("head,hidden", [("shared", 64), ("independent", 6 * 128)])
def test_default_sizes_and_gradients(head, hidden):
    module = DiverseAttention(32, head=head)
    assert module.trunk[0].out_channels == hidden
    out = module(torch.randn(3, 32, 4, 4))
    (out.pooled.square().sum() + DiversityLoss()(out)).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())


def test_rejects():
    with pytest.raises(ValueError, match="head to be one of 'shared', 'independent', got 'both'"):
        DiverseAttention(head="both")
    with pytest.raises(ValueError, match=r"DiverseAttention: expected features \(B, 8, H, W\), got \(2, 9, 4, 4\)"):
        DiverseAttention(8)(torch.zeros(2, 9, 4, 4))


def test_both_penalties():
    z = 3 * wave((2, 3, 8), 1.1, 0.2).requires_grad_()
    out = ops.diverse_attention(torch.zeros(2, 1, 8, dtype=torch.float64), z)
    assert abs(DiversityLoss()(out).item() - 1.49338785) < 1e-8
    assert abs(DiversityLoss("paper_mean")(out).item() - (1.16000133 + 1.07019595) / 2) < 1e-8
    assert DiversityLoss(weight=0.5)(out.overlap).item() == DiversityLoss()(out).item() * 0.5
    (official,) = torch.autograd.grad(DiversityLoss()(out), z, retain_graph=True)
    (total,) = torch.autograd.grad(out.overlap.sum(), z)
    torch.testing.assert_close(official, total / (2 * 1.49338785), rtol=1e-7, atol=0)


def test_penalty_is_the_released_one_on_ordinary_attention():
    attention = torch.randn(4, 6, 32).softmax(-1)
    root = attention.sqrt()
    released = ((root @ root.transpose(1, 2) - torch.eye(6)).square().sum() + 1e-5).sqrt()
    out = ops.diverse_attention(torch.zeros(4, 1, 32), attention.log())
    torch.testing.assert_close(DiversityLoss()(out), released)


def test_loss_has_a_finite_gradient_without_overlap_and_without_frames():
    z = torch.full((1, 2, 4), -500.0)
    z[0, 0, 0] = z[0, 1, 1] = 500.0
    z.requires_grad_()
    DiversityLoss()(ops.diverse_attention(torch.zeros(1, 1, 4), z)).backward()
    assert bool(z.grad.isfinite().all())
    assert DiversityLoss()(torch.zeros(0)).item() == 0


def test_loss_rejects():
    with pytest.raises(ValueError, match="reduction to be one of 'official', 'paper_mean', got 'sum'"):
        DiversityLoss("sum")
    with pytest.raises(ValueError, match=r"DiversityLoss: expected overlap \(B,\), got \(2, 3, 4\)"):
        DiversityLoss()(torch.zeros(2, 3, 4))
