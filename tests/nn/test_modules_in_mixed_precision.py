# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Modules under autocast: forward and backward in both half types give what they give in float32, up to rounding."""

import pytest
import torch
from torch import nn

from reidfast.nn import (
    RRU,
    STIM,
    DiverseAttention,
    FixedPatches,
    GradCAM,
    MemoryBank,
    PatchGenerator,
    QualityPool,
    QualityUnit,
    QueryConvLSTM,
    TemporalAttention,
)


def attention(head):
    return DiverseAttention(16, 3, hidden=8, head=head), (torch.randn(4, 16, 6, 3),)


def temporal():
    module = TemporalAttention(parts=3, dim=16)
    nn.init.normal_(module.weight, std=0.3)
    return module, (torch.randn(2, 4, 3, 16),)


def patches():
    return PatchGenerator(8, 3, hidden=16), (torch.randn(4, 8, 12, 6),)


def stim(frames):
    return STIM(16, 16, hidden=16), (torch.randn(4, frames, 16, 8, 4),)


def quality():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.unit, self.pool = QualityUnit(16, hidden=8), QualityPool()

        def forward(self, maps):
            return self.pool(maps.mean((2, 3)), self.unit(maps), torch.tensor([0, 3, 4, 8]))

    return Pooled(), (torch.randn(8, 16, 6, 4),)


def bank():
    module = MemoryBank(30, 16, parts=3, k=4)
    module.write(torch.arange(30), nn.functional.normalize(torch.randn(3, 30, 16), dim=2))
    return module, (nn.functional.normalize(torch.randn(3, 5, 16), dim=2), torch.arange(5))


def cam():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    return GradCAM(head), (torch.randn(4, 16, 6, 3), torch.arange(4))


MODULES = {
    "PatchGenerator": patches,
    "FixedPatches": lambda: (FixedPatches(3), (torch.randn(4, 8, 12, 6),)),
    "TemporalAttention": temporal,
    "DiverseAttention shared": lambda: attention("shared"),
    "DiverseAttention independent": lambda: attention("independent"),
    "RRU": lambda: (RRU(16, (6, 3), hidden=8, spatial_hidden=8), (torch.randn(2, 4, 16, 6, 3),)),
    "STIM": lambda: stim(4),
    "STIM of two frames": lambda: stim(2),
    "quality": quality,
    "MemoryBank": bank,
    "QueryConvLSTM": lambda: (
        QueryConvLSTM(8, 4, peephole=True), (torch.randn(3, 2, 8, 6, 6), torch.randn(2, 8, 6, 6))
    ),
    "GradCAM": cam,
}  # fmt: skip


def forward_backward(module, inputs):
    """Outputs that have a gradient, then gradients of inputs and parameters of the sum of their squares."""
    module.zero_grad()
    inputs = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    with torch.autocast("cpu", enabled=False) if module.dtype is None else torch.autocast("cpu", module.dtype):
        out = module(*inputs)
    found = [out] if isinstance(out, torch.Tensor) else [x for x in out if isinstance(x, torch.Tensor)]
    sum(x.float().square().sum() for x in found).backward()
    gradients = {f"input {i}": x.grad for i, x in enumerate(inputs) if x.is_floating_point()}
    gradients |= {name: x.grad for name, x in module.named_parameters()}
    return found, gradients


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", sorted(MODULES))
def test_autocast(name, dtype):
    module, inputs = MODULES[name]()
    before = {key: x.clone() for key, x in module.state_dict().items()}
    module.dtype = None
    want, wanted = forward_backward(module, inputs)
    module.load_state_dict(before)
    module.dtype = dtype
    got, gradients = forward_backward(module, inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.05 * float(b.detach().abs().max()))
    largest = max(float(x.norm()) for x in wanted.values() if x is not None)
    for key, gradient in gradients.items():
        assert (gradient is None) == (wanted[key] is None), key
        if gradient is None:
            continue
        assert gradient.dtype == torch.float32 and bool(gradient.isfinite().all()), key
        error = float((gradient - wanted[key]).norm())
        assert error < 0.2 * float(wanted[key].norm()) + 0.01 * largest, key  # biases before a softmax: rounding alone


def test_two_frames_have_one_gradient():
    """Where memory that nobody wrote would show: the same gradient over and over, between other allocations."""
    module, (maps,) = stim(2)
    module.dtype = torch.bfloat16
    _, first = forward_backward(module, (maps,))
    for _ in range(4):
        junk = [torch.full((n,), torch.nan) for n in (10, 100, 1000, 10000) * 20]
        del junk
        _, again = forward_backward(module, (maps,))
        assert all(torch.equal(first[key], again[key]) for key in first)
