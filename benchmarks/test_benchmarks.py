# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Throughput through pytest-benchmark: ``pytest benchmarks --benchmark-only``.

One case per entry, quick shape and provider; the providers of one entry and shape make a group.
"""

import pytest
import torch

from benchmarks.harness.registry import load_all

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [
    pytest.param((bench.name, shape, provider), id=f"{bench.name}-{shape}-{provider}".replace(" ", "_"))
    for bench in load_all().values()
    if DEVICE in bench.devices
    for shape in (bench.quick or tuple(bench.shapes)[:1])
    for provider in bench.provider_names()
]
_steps: dict = {}  # the providers of the entry and shape at hand


@pytest.mark.parametrize("case", CASES)
def test_throughput(benchmark, case):
    name, shape_name, provider = case
    bench = load_all()[name]
    shape = bench.shapes[shape_name]
    if (name, shape_name) not in _steps:
        _steps.clear()
        torch.manual_seed(0)
        torch.compiler.reset()
        _steps[name, shape_name] = bench.providers(shape, DEVICE)
    benchmark.group = f"{name} {shape_name} ({bench.mode})"
    benchmark.name = provider
    benchmark.extra_info |= {"sizes": str(shape), "least_bytes": bench.bytes(shape), "least_flops": bench.flops(shape)}
    try:
        benchmark.pedantic(_steps[name, shape_name][provider], rounds=5, iterations=1, warmup_rounds=2)
    except Exception as error:
        if provider == "reidfast":
            raise
        pytest.skip(f"baseline cannot run here: {error!s:.100}")
