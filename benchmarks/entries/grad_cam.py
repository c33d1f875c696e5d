# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""grad_cam against the product and sum over channels that most Grad-CAM code writes, and against bmm."""

import torch

from benchmarks.harness.registry import register, with_backward
from reidfast.ops import grad_cam
from reidfast.ops.reference.grad_cam import grad_cam as eager


def bmm(features, weights):
    b, _, h, w = features.shape
    return torch.bmm(weights.unsqueeze(1), features.flatten(2)).view(b, h, w).relu()


def providers(shape, device):
    b, c, h, w = shape["batch"], shape["channels"], shape["height"], shape["width"]
    features = torch.randn(b, c, h, w, device=device, requires_grad=True)
    weights = torch.randn(b, c, device=device, requires_grad=True)
    grads = [torch.randn(b, h, w, device=device)]
    step = lambda function: with_backward(function, features, weights, grads=grads)  # noqa: E731
    return {
        "reidfast": step(grad_cam),
        "eager": step(eager),
        "eager bmm": step(bmm),
        "torch.compile of it": step(torch.compile(eager, dynamic=False)),
    }


def cells(shape):
    return shape["batch"] * shape["channels"] * shape["height"] * shape["width"]


register(
    name="grad_cam",
    shapes={
        "resnet": {"batch": 32, "channels": 2048, "height": 16, "width": 8},
        "pcb": {"batch": 32, "channels": 2048, "height": 24, "width": 8},
        "tiny": {"batch": 1, "channels": 2, "height": 2, "width": 2},
    },
    providers=providers,
    bytes=lambda s: 4 * 3 * cells(s),
    flops=lambda s: 5 * cells(s),
    targets={"resnet": {"eager": 1.5}},
    tests="tests/ops/test_grad_cam.py",
    quick=("resnet", "tiny"),
)
