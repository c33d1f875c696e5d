# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What is measured: one entry per op or job, registered by the modules of benchmarks/entries.

An entry names its shapes, makes its inputs, and lists *providers*: ways to compute the same thing. Always eager PyTorch
and ``torch.compile`` of the same formula, the peer's way where there is one, and ours. Bytes and flops are the least
that any implementation must move and compute: the floor, not a guess at what happens.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Step = Callable[[], Any]


@dataclass(frozen=True)
class Bench:
    """One thing to measure.

    Args:
        name: Of the op or job.
        shapes: Named sizes: {"market": {...}}; the one called "tiny", if any, shows call overhead.
        providers: shape, device -> {provider name: step}. A step computes once, into fresh outputs, gradients included
            where the entry measures them. The provider "reidfast" is ours; others are baselines, each named by its
            code.
        bytes: shape -> least bytes moved.
        flops: shape -> least floating-point operations.
        mode: What a step covers: "forward", "forward+backward", ...
        targets: {baseline name: ratio} that "reidfast" is held to (baseline time / our time), per shape name.
        tests: Test file that must be green before a figure counts.
        devices: Device types the entry can run on.
        quick: Shapes that pytest-benchmark runs by default.
        long: Shapes of minutes, left out of a run unless it names them or says --long.
    """

    name: str
    shapes: dict[str, dict[str, Any]]
    providers: Callable[[dict[str, Any], str], dict[str, Step]]
    bytes: Callable[[dict[str, Any]], float]
    flops: Callable[[dict[str, Any]], float]
    mode: str = "forward+backward"
    targets: dict[str, dict[str, float]] = field(default_factory=dict)
    tests: str = ""
    devices: tuple[str, ...] = ("cpu", "cuda")
    quick: tuple[str, ...] = ()
    long: tuple[str, ...] = ()

    def provider_names(self) -> list[str]:
        """Names of the providers, taken at the smallest shape."""
        shape = self.shapes["tiny"] if "tiny" in self.shapes else list(self.shapes.values())[-1]
        return list(self.providers(shape, "cpu"))


REGISTRY: dict[str, Bench] = {}


def register(name: str, **fields: Any) -> Bench:
    """Add an entry of these `Bench` fields; names are unique."""
    if name in REGISTRY:
        raise ValueError(f"register: {name!r} is registered twice")
    REGISTRY[name] = Bench(name, **fields)
    return REGISTRY[name]


def load_all() -> dict[str, Bench]:
    """Import every module of benchmarks/entries and return what they register, by name."""
    from benchmarks import entries

    for module in pkgutil.iter_modules(entries.__path__, f"{entries.__name__}."):
        importlib.import_module(module.name)
    return REGISTRY


def with_backward(function: Callable[..., Any], *inputs: torch.Tensor, grads: Any = None) -> Step:
    """A step: forward, then backward into fresh gradients of every input that requires one.

    Args:
        function: Called with ``inputs``; returns a tensor or several.
        inputs: Leaves; those that require gradients get them.
        grads: Upstream gradients for the floating-point outputs, in order; ones where None.
    """
    leaves = [x for x in inputs if x.requires_grad]

    def step() -> Any:
        outputs = function(*inputs)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        outputs = [o for o in outputs if isinstance(o, torch.Tensor) and o.requires_grad]
        upstream = [torch.ones_like(o) for o in outputs] if grads is None else grads
        return torch.autograd.grad(outputs, leaves, upstream)

    return step
