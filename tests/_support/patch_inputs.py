# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Inputs that the tests of sample_patches and pool_patches share."""

import torch

SHAPES = [  # B, C, H, W, M, (h, w): one cell, odd, past a vector, past a block of patches, larger than a tile
    (1, 1, 1, 1, 1, (1, 1)),
    (2, 5, 4, 3, 2, (3, 5)),
    (2, 37, 7, 5, 3, (6, 4)),
    (3, 130, 6, 9, 7, (2, 2)),
    (1, 16, 24, 16, 6, (24, 16)),
]
LAYOUTS = ("contiguous", "channels_last")


def ulps(dtype):
    """Floor of a comparison: in float64 plain PyTorch is itself the truth and leaves no error to compare with."""
    return 64 if dtype == torch.float64 else 4


def stripes(batch, patches, dtype=torch.float64):
    """Horizontal stripes from top to bottom, the patch generator's initial transforms."""
    theta = torch.zeros(batch, patches, 2, 3, dtype=torch.float64)
    theta[..., 0, 0] = 1
    theta[..., 1, 1] = 1 / patches
    theta[..., 1, 2] = (2 * torch.arange(patches, dtype=torch.float64) + 1) / patches - 1
    return theta.to(dtype)


def transforms(batch, patches, dtype=torch.float64, *, kind="general", seed=0):
    """Affine transforms: general, upright (zero off-diagonals), or partly to wholly outside the map."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(batch, patches, 2, 3, generator=generator, dtype=torch.float64) * 0.6
    if kind == "upright":
        theta[..., 0, 1] = theta[..., 1, 0] = 0
    if kind == "outside":
        theta[..., 2] *= 4
    return theta.to(dtype)


def feature_map(batch, channels, height, width, dtype=torch.float64, *, layout="contiguous", seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def run(function, features, theta, size, align_corners, grad):
    """Output and gradients of ``function``, called as the dispatcher op is."""
    x, t = features.detach().requires_grad_(), theta.detach().requires_grad_()
    out = function(x, t, *size, align_corners)
    return (out, *torch.autograd.grad(out, (x, t), grad.to(out)))
