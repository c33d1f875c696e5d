# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""query_lstm_cell against eager PyTorch; its peers are eager implementations of the same lines."""

import torch

from benchmarks.harness.registry import register, with_backward
from reidfast.ops import query_lstm_cell
from reidfast.ops.reference.query_lstm_cell import query_lstm_cell as eager


def providers(shape, device):
    b, d, s = shape["batch"], shape["hidden"], shape["side"]
    gates, query = (torch.randn(n, 4 * d, s, s, device=device, requires_grad=True) for n in (b, 1))
    c = torch.randn(b, d, s, s, device=device, requires_grad=True)
    grads = [torch.randn(b, d, s, s, device=device) for _ in range(2)]
    step = lambda function: with_backward(function, gates, query, c, grads=grads)  # noqa: E731
    return {
        "reidfast": step(query_lstm_cell),
        "eager": step(eager),
        "torch.compile of it": step(torch.compile(eager, dynamic=False)),
    }


def cells(shape):
    return shape["batch"] * shape["hidden"] * shape["side"] ** 2


register(
    name="query_lstm_cell",
    shapes={
        "frame": {"batch": 2, "hidden": 512, "side": 14},
        "batch": {"batch": 16, "hidden": 512, "side": 14},
        "tiny": {"batch": 1, "hidden": 1, "side": 2},
    },
    providers=providers,
    bytes=lambda s: 4 * (7 + 12) * cells(s),  # forward: 5 in, 2 out; backward: 7 in, 5 out
    flops=lambda s: 40 * cells(s),
    targets={"batch": {"eager": 1.0}},
    tests="tests/ops/test_query_lstm_cell.py",
    quick=("frame", "tiny"),
)
