# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""sample_patches against one affine_grid and grid_sample per patch."""

import torch
from torch.nn.functional import affine_grid, grid_sample

from benchmarks.harness.registry import register, with_backward
from reidfast.ops import sample_patches


def six_calls(x, theta):
    """PAUL's patch generator, restated: one affine_grid and one grid_sample for each patch."""
    return tuple(
        grid_sample(x, affine_grid(t, x.shape, align_corners=True), align_corners=True) for t in theta.unbind(1)
    )


def inputs(shape, device, layout=torch.contiguous_format):
    b, c, h, w, m = (shape[k] for k in ("batch", "channels", "height", "width", "patches"))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(b, c, h, w, generator=generator).to(device).contiguous(memory_format=layout).requires_grad_()
    theta = torch.zeros(b, m, 2, 3)  # stripes, each moved a little: what training sees
    theta[..., 0, 0], theta[..., 1, 1] = 1, 1 / m
    theta[..., 1, 2] = (2 * torch.arange(m) + 1) / m - 1
    theta += 0.05 * torch.randn(theta.shape, generator=generator)
    return x, theta.to(device).requires_grad_()


def providers(layout):
    def make(shape, device):
        x, theta = inputs(shape, device, layout)
        grad = torch.randn(*theta.shape[:2], *x.shape[1:], device=device)
        if layout == torch.channels_last:
            grad = grad.movedim(2, -1).contiguous().movedim(-1, 2)
        each = [g.contiguous(memory_format=layout) for g in grad.unbind(1)]
        return {
            "reidfast": with_backward(sample_patches, x, theta, grads=[grad]),
            "eager, six grid_sample calls": with_backward(six_calls, x, theta, grads=each),
            "torch.compile of the six calls": with_backward(
                torch.compile(six_calls, dynamic=False), x, theta, grads=each
            ),
        }

    return make


SHAPES = {
    "paul": {"batch": 20, "channels": 1024, "height": 24, "width": 8, "patches": 6},
    "small": {"batch": 4, "channels": 256, "height": 12, "width": 4, "patches": 6},
    "tiny": {"batch": 1, "channels": 2, "height": 3, "width": 2, "patches": 1},
}


def cells(shape):
    return shape["batch"] * shape["channels"] * shape["height"] * shape["width"]


for name, layout in (("", torch.contiguous_format), (" channels_last", torch.channels_last)):
    register(
        name=f"sample_patches{name}",
        shapes=SHAPES,
        providers=providers(layout),
        # forward: read the map, write the patches; backward: read map and patches' gradient, write the map's
        bytes=lambda shape: 4 * cells(shape) * (3 + 2 * shape["patches"]),
        flops=lambda shape: cells(shape) * shape["patches"] * 30,
        targets={"paul": {"eager, six grid_sample calls": 4.0}},
        tests="tests/ops/test_sample_patches.py",
        quick=("paul", "tiny"),
    )
