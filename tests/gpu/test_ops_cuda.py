# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""All ops on a CUDA device: against the float64 reference, deterministic, without synchronising, captured in a graph.

What does not need a GPU also runs on the CPU, so that the checks themselves are checked everywhere.
"""

import os
import subprocess
import sys

import pytest
import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "ops"))

from cases import CASES, Case, forward_backward, leaves  # noqa: E402

import reidfast  # noqa: E402
from reidfast import ops  # noqa: E402
from reidfast.testing import FLOATS, assert_no_worse, nan_poison, shape_id  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("sizes", ["even", "odd"])
@pytest.mark.parametrize("dtype", FLOATS, ids=shape_id)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_matches_the_float64_reference(name, device, dtype, sizes):
    call, inputs = CASES[name](Case(dtype, device, sizes))
    got = forward_backward(call, inputs)
    with reidfast.use_backend("reference"):
        exact_call, exact_inputs = CASES[name](Case(torch.float64, "cpu", sizes))
        exact = forward_backward(exact_call, exact_inputs)
        eager_call, eager_inputs = CASES[name](Case(dtype, "cpu", sizes))
        eager = forward_backward(eager_call, eager_inputs)
    assert_no_worse(got, exact, eager, factor=3, ulps=8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_deterministic_and_whole(name, device):
    call, inputs = CASES[name](Case(torch.float32, device))
    once = forward_backward(call, inputs)
    with nan_poison():
        again = forward_backward(call, inputs)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_never_synchronises(name):
    call, inputs = CASES[name](Case(torch.float32, "cuda"))
    forward_backward(call, inputs)  # libraries load, tuners choose
    inputs = [x.detach().requires_grad_() for x in inputs]
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = [o for o in leaves(call(*inputs)) if o.requires_grad]
        if outputs:
            torch.autograd.grad(outputs, inputs, [torch.ones_like(o) for o in outputs], allow_unused=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture(step, *, warm_up=3):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return graph, result


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_captures_in_a_graph(name):
    call, inputs = CASES[name](Case(torch.float32, "cuda"))
    want = forward_backward(call, inputs)
    graph, got = capture(lambda: forward_backward(call, inputs))
    for x in got:
        x.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_runs_on_the_current_stream(name):
    call, inputs = CASES[name](Case(torch.float32, "cuda"))
    want = forward_backward(call, inputs)
    source = [x.clone() for x in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for x in inputs:
            x.zero_()
        torch.cuda._sleep(50_000_000)  # work on any other stream would overtake the copy below
        for x, s in zip(inputs, source, strict=True):
            x.copy_(s)
        got = forward_backward(call, inputs)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


PAUL = ("pool_patches", "memory_loss", "memory_update_", "cyclic_negatives")


def paul_step(device):
    """Patches from a map, pooled and embedded; memory loss over the patches; mined negatives; the bank's update."""
    generator = torch.Generator().manual_seed(3)
    make = lambda *shape: torch.randn(*shape, generator=generator).to(device)  # noqa: E731
    images, patches, channels, dim, rows = 8, 6, 32, 16, 64
    features = make(images, channels, 24, 8)
    theta = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.2, 0.0]]).expand(images, patches, 2, 3).clone()
    theta[:, :, 1, 2] = torch.linspace(-0.8, 0.8, patches)
    theta, embed = theta.to(device).requires_grad_(), (make(channels, dim) / 6).requires_grad_()
    bank = torch.nn.functional.normalize(make(patches, rows, dim), dim=-1)
    indices = torch.arange(images, device=device)
    own = torch.arange(images, device=device)

    def step():
        pooled = ops.pool_patches(features, theta)
        x = torch.nn.functional.normalize(pooled @ embed, dim=-1).transpose(0, 1).contiguous()
        loss = ops.memory_loss(x, bank, 4, scale=5.0).mean()
        flat = x.transpose(0, 1).reshape(images, -1)
        negatives = ops.cyclic_negatives(flat.detach(), flat.detach(), own, r=2, candidates=4)
        there = (negatives >= 0).to(flat.dtype)
        gaps = (flat - flat.detach()[negatives.clamp(min=0)]).square().sum(1)
        loss = loss + (there * torch.relu(2.0 - gaps)).mean()
        grads = torch.autograd.grad(loss, (theta, embed))
        ops.memory_update_(bank, indices, x.detach(), momentum=0.9)
        return loss.detach(), *grads

    return step, bank


missing = [name for name in PAUL if not hasattr(ops, name)]


@pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")
def test_paul_step_runs():
    step, bank = paul_step("cpu")
    before = bank.clone()
    loss, *grads = step()
    assert bool(loss.isfinite()) and all(bool(g.isfinite().all()) and bool(g.any()) for g in grads)
    assert not torch.equal(bank, before)


@pytest.mark.gpu
@pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")
def test_paul_step_in_a_graph():
    eager, _ = paul_step("cuda")
    want = [[t.clone() for t in eager()] for _ in range(6)]
    step, _ = paul_step("cuda")
    graph, got = capture(step)  # three steps warm up; capturing runs none
    for i in (3, 4, 5):
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(got, want[i], strict=True))


@pytest.mark.gpu
def test_a_large_case_needs_64_bit_offsets():
    free = torch.cuda.mem_get_info()[0]
    if free < 12 * 2**30:
        pytest.skip(f"needs 12 GiB of free device memory, found {free / 2**30:.1f}")
    x = torch.ones(1_100_000, 2048, dtype=torch.bfloat16, device="cuda")  # 2.25e9 elements
    offsets = torch.tensor([0, 1_000_000, 1_100_000], device="cuda")
    x[1_000_000:] = 2
    out = ops.set_pool(x, torch.ones(1_100_000, device="cuda"), offsets, weighting="softmax")
    assert out.float().mean(1).tolist() == [1.0, 2.0]


def test_small_cases_script():
    script = os.path.join(os.path.dirname(__file__), "small_cases.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ops ran on" in done.stdout
