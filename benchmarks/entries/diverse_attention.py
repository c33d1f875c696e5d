# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""diverse_attention against the released multiply-and-average pattern, and against softmax, bmm and Gram."""

import torch
from torch.nn.functional import avg_pool2d

from benchmarks.harness.registry import register, with_backward
from reidfast.ops import diverse_attention


def released(x, logits):
    """DRSTA's spatial attention, restated: expand, multiply, average, and autograd through the square root."""
    b, d, h, w = x.shape
    k = logits.shape[1]
    attention = logits.flatten(2).softmax(-1).view(b, k, 1, h, w)
    product = x.unsqueeze(1).expand(b, k, d, h, w) * attention.expand(b, k, d, h, w)
    pooled = avg_pool2d(product.reshape(b * k, d, h, w), (h, w)).view(b, k, d) * (h * w)
    root = attention.view(b, k, h * w).sqrt()
    gram = root @ root.transpose(1, 2) - torch.eye(k, device=x.device)
    return pooled, gram.square().sum((1, 2))


def eager(x, logits):
    attention = logits.flatten(2).softmax(-1)
    root = attention.sqrt()
    gram = torch.bmm(root, root.transpose(1, 2)) - torch.eye(logits.shape[1], device=x.device)
    return torch.bmm(attention, x.flatten(2).transpose(1, 2)), gram.square().sum((1, 2))


def ours(x, logits):
    out = diverse_attention(x, logits)
    return out.pooled, out.overlap


def providers(shape, device):
    b, d, k, h, w = (shape[n] for n in ("frames", "channels", "maps", "height", "width"))
    x = torch.randn(b, d, h, w, device=device, requires_grad=True)
    logits = torch.randn(b, k, h, w, device=device, requires_grad=True)
    grads = [torch.randn(b, k, d, device=device), torch.randn(b, device=device)]
    return {
        "reidfast": with_backward(ours, x, logits, grads=grads),
        "released pattern": with_backward(released, x, logits, grads=grads),
        "eager softmax, bmm, Gram": with_backward(eager, x, logits, grads=grads),
        "torch.compile of softmax, bmm, Gram": with_backward(
            torch.compile(eager, dynamic=False), x, logits, grads=grads
        ),
    }


def cells(shape):
    return shape["frames"] * shape["channels"] * shape["height"] * shape["width"]


register(
    name="diverse_attention",
    shapes={
        "drsta": {"frames": 192, "channels": 2048, "maps": 6, "height": 8, "width": 4},
        "small": {"frames": 12, "channels": 256, "maps": 3, "height": 8, "width": 4},
        "tiny": {"frames": 1, "channels": 2, "maps": 2, "height": 2, "width": 2},
    },
    providers=providers,
    bytes=lambda shape: 4 * cells(shape) * 3,  # forward: read the map; backward: read it, write its gradient
    flops=lambda shape: cells(shape) * shape["maps"] * 6,
    targets={
        "drsta": {
            "released pattern": 10.0,
            "eager softmax, bmm, Gram": 2.0,
            "torch.compile of softmax, bmm, Gram": 1.0,
        }
    },
    tests="tests/ops/test_diverse_attention.py",
    quick=("drsta", "tiny"),
)
