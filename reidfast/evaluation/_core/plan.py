# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Which backend serves an evaluation: decided here, once per call.

On the CPU the compiled library, else plain torch. On CUDA the Triton kernels, else plain torch; float64 is plain torch
there. Lists and matrices in host memory are the CPU backend's on every device. `reidfast.use_backend` overrides.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from reidfast.evaluation._backends import compiled
from reidfast.evaluation._backends.base import Backend, SetOptions
from reidfast.evaluation._backends.compiled import Compiled
from reidfast.evaluation._backends.torch_tiles import TorchTiles
from reidfast.evaluation._backends.triton import Triton
from reidfast.ops import _backends

_NAMES = ("native", "triton", "reference")
_DEVICES = ("cpu", "cuda")
# What the CUDA kernels hold in shared memory: a neighbourhood with all that may join it, and k2 of those.
_SHARED_SET, _SHARED_EXPANSION = 16384, 8192


def reasons(backend: str, device: str) -> str:
    """Why ``backend`` cannot serve ``device``; empty when it can."""
    if backend == "triton":
        if device != "cuda":
            return "Triton kernels need a CUDA device"
        return "" if find_spec("triton") is not None else "Triton is not installed (pip install triton)"
    if backend == "native":
        if not compiled.loaded():
            return compiled.why_not_loaded()
        return "" if device == "cpu" else "evaluation's GPU kernels are written in Triton"
    return ""


def serving(device: str) -> str:
    """The backend in force on ``device``, or "none" where the one that is asked for cannot serve it."""
    wanted = compiled.forced()
    return next((name for name in ((wanted,) if wanted else _NAMES) if not reasons(name, device)), "none")


def triton_kernels(device: torch.device) -> Any:
    """The Triton kernels where they serve ``device``, or None."""
    if serving(device.type) != "triton":
        return None
    from reidfast.ops.triton import ranking  # imported by the first call, not with the package

    return ranking


class Plan(NamedTuple):
    """The backends of one call."""

    features: Backend  # what works on features and on whatever else is on their device
    host: Backend  # what works on lists and matrices in host memory

    def on(self, device: torch.device) -> Backend:
        """What works on lists and matrices on ``device``."""
        return self.host if device.type == "cpu" else self.features

    def lists_device(self, device: torch.device) -> torch.device:
        """Where neighbour lists of features on ``device`` are settled: there, if there are compiled kernels for it."""
        served = device.type == "cpu" or getattr(self.features, "kernels", None) is not None
        return device if served else torch.device("cpu")

    def sets_device(self, device: torch.device, options: SetOptions) -> torch.device:
        """Where neighbour lists become weighted sets: on ``device``, if its kernels hold sets of this size."""
        joined = options.k1 * (options.k1_half + 1)
        fits = joined <= _SHARED_SET and (options.k2 <= 1 or options.k2 * joined <= _SHARED_EXPANSION)
        return self.lists_device(device) if fits else torch.device("cpu")


def host_backend(op: str) -> Backend:
    """The backend of lists and matrices in host memory."""
    name = "native" if compiled.loaded() and compiled.forced() != "reference" else "reference"
    if serving("cpu") == "none" and compiled.forced() != "triton":
        raise _unserved(op, "cpu")
    return Compiled() if name == "native" else TorchTiles()


def choose(op: str, device: torch.device, *, wide: bool = False, precision: str = "float32") -> Plan:
    """The backends for features on ``device``; ``wide`` = float64.

    Raises:
        RuntimeError: the backend that `reidfast.use_backend` asks for cannot serve the device.
        NotImplementedError: no backend serves this precision.
    """
    host = host_backend(op)
    triton = None if wide else triton_kernels(device)
    if triton is not None:
        return Plan(Triton(triton, compiled.device_kernels(device), precision), host)
    if precision != "float32":
        why = "for float64 features" if wide else f"on {device.type}"
        if device.type == "cuda" and not wide:
            why += f" ({reasons('triton', 'cuda') or 'another backend is forced'})"
        raise NotImplementedError(f"{op}: precision {precision!r} is not served {why}; use precision='float32'")
    name = serving(device.type)
    if name == "none":
        raise _unserved(op, device.type)
    return Plan(host if name == "native" else TorchTiles(compiled.device_kernels(device)), host)


def _unserved(op: str, device: str) -> RuntimeError:
    wanted = str(compiled.forced())
    return RuntimeError(f"{op}: backend {wanted!r} cannot serve {device}: {reasons(wanted, device)}")


class _Entry:
    """Evaluation in `reidfast.backends` and `reidfast.implementations`."""

    name = "evaluation"

    def reasons(self, backend: str, device: str) -> str:
        return reasons(backend, device)

    def kernel(self, backend: str) -> Any:
        return {"native": Compiled, "triton": Triton, "reference": TorchTiles}[backend]

    def choose(self, forced: str | None) -> None:
        """Nothing to do: `choose` asks at every call."""


_backends.add(_Entry())
