# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""PatchGenerator: its size, its stripes, its gradients, its errors."""

import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample

from reidfast.nn import FixedPatches, PatchGenerator


def test_parameter_count():
    with torch.device("meta"):
        generator = PatchGenerator()
    assert sum(p.numel() for p in generator.parameters()) == 77_625_892


def test_starts_as_horizontal_stripes():
    generator = PatchGenerator(channels=4).eval()
    x = torch.randn(2, 4, 24, 8)
    theta = generator.transforms(x)
    tops = torch.tensor([-5 / 6, -3 / 6, -1 / 6, 1 / 6, 3 / 6, 5 / 6])
    torch.testing.assert_close(theta[1, :, 1, 2], tops)
    torch.testing.assert_close(theta[0, 3], torch.tensor([[1, 0, 0], [0, 1 / 6, 1 / 6]]))
    assert generator.patches == 6 and theta.shape == (2, 6, 2, 3)


@pytest.mark.parametrize("align_corners", [True, False])
def test_equals_six_calls_of_grid_sample(align_corners):
    generator = PatchGenerator(channels=4, align_corners=align_corners).eval()
    torch.nn.init.normal_(generator.fc2.weight, std=0.05)
    x = torch.randn(2, 4, 12, 6)
    theta = generator.transforms(x)
    patches = torch.stack(
        [
            grid_sample(x, affine_grid(theta[:, m], x.shape, align_corners=align_corners), align_corners=align_corners)
            for m in range(6)
        ],
        1,
    )
    torch.testing.assert_close(generator.sample(x), patches, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(generator(x), patches.mean((-2, -1)), rtol=1e-4, atol=1e-5)
    assert PatchGenerator(channels=4, size=(3, 2)).eval().sample(x).shape == (2, 6, 4, 3, 2)


def test_every_parameter_learns():
    generator = PatchGenerator(channels=4, patches=3)
    torch.nn.init.normal_(generator.fc2.weight, std=0.05)
    generator(torch.randn(3, 4, 9, 5)).square().sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert name == "conv.bias" or bool(parameter.grad.any()), name  # batch norm takes the convolution's bias away


def test_compiles_without_breaks():
    generator = PatchGenerator(channels=4, patches=2).eval()
    x = torch.randn(2, 4, 6, 5)
    compiled = torch.compile(generator, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), generator(x))


@pytest.mark.parametrize("shape", [(2, 5, 6, 6), (2, 4, 2, 6), (4, 6, 6)])
def test_rejects(shape):
    with pytest.raises(ValueError, match=r"PatchGenerator: expected features \(B, 4, H, W\) with H, W >= 3"):
        PatchGenerator(channels=4)(torch.zeros(shape))


def test_fixed_stripes_equal_the_generator_at_its_start():
    x = torch.randn(2, 4, 12, 6, requires_grad=True)
    fixed, generator = FixedPatches(5), PatchGenerator(channels=4, patches=5).eval()
    torch.testing.assert_close(fixed(x), generator(x))
    torch.testing.assert_close(fixed.sample(x), generator.sample(x))
    fixed(x).sum().backward()
    assert bool(x.grad.any()) and not list(fixed.parameters())


def test_random_patches_lie_inside_and_depend_on_the_seed():
    boxes = [FixedPatches(50, kind="random", seed=s).theta for s in (0, 0, 1)]
    assert torch.equal(boxes[0], boxes[1]) and not torch.equal(boxes[0], boxes[2])
    corners = boxes[0][:, [0, 1], [0, 1]] + boxes[0][:, :, 2].abs()
    assert bool((corners <= 1 + 1e-6).all())
    with pytest.raises(ValueError, match="FixedPatches: expected kind stripes or random, got 'round'"):
        FixedPatches(kind="round")
