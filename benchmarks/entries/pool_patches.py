# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""pool_patches against affine_grid, grid_sample and mean per patch."""

import torch

from benchmarks.entries.sample_patches import SHAPES, cells, inputs, six_calls
from benchmarks.harness.registry import register, with_backward
from reidfast.ops import pool_patches


def six_calls_and_mean(x, theta):
    """PAUL's patch generator and the global average pooling behind it, restated."""
    return torch.stack([patch.mean((-2, -1)) for patch in six_calls(x, theta)], 1)


def providers(layout):
    def make(shape, device):
        x, theta = inputs(shape, device, layout)
        grads = [torch.randn(*theta.shape[:2], x.shape[1], device=device)]
        return {
            "reidfast": with_backward(pool_patches, x, theta, grads=grads),
            "eager, six grid_sample calls and mean": with_backward(six_calls_and_mean, x, theta, grads=grads),
            "torch.compile of the six calls and mean": with_backward(
                torch.compile(six_calls_and_mean, dynamic=False), x, theta, grads=grads
            ),
        }

    return make


for name, layout in (("", torch.contiguous_format), (" channels_last", torch.channels_last)):
    register(
        name=f"pool_patches{name}",
        shapes=SHAPES,
        providers=providers(layout),
        bytes=lambda shape: 4 * cells(shape) * 3,  # forward: read the map; backward: read it, write its gradient
        flops=lambda shape: cells(shape) * shape["patches"] * 6,
        targets={"paul": {"eager, six grid_sample calls and mean": 20.0}},
        tests="tests/ops/test_pool_patches.py",
        quick=("paul", "tiny"),
    )
