# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Which implementation serves an op on a device, decided in one place.

Three backends: ``native`` (the compiled op, reached through torch's dispatcher), ``triton`` (a Triton kernel registered
for the CUDA key of the same dispatcher op) and ``reference`` (plain PyTorch). A device is served by the first that can
run, in that order for the CPU and by the op's own preference on CUDA. ``REIDFAST_BACKEND`` or ``use_backend`` override.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from reidfast.ops import _extension

BACKENDS = ("native", "triton", "reference")
DEVICES = ("cpu", "cuda")

_OPS: dict[str, Dispatch] = {}
_forced: str | None = None


class Dispatch:
    """The implementations of one op, and the one in force per device type.

    Calling ``dispatch.on[device_type](*args)`` runs it; every implementation has the signature of the dispatcher op's
    schema.
    """

    def __init__(
        self,
        name: str,
        *,
        reference: Callable[..., Any],
        triton: Callable[..., Any] | None = None,
        triton_reason: str = "this op has no Triton kernel",
        native_cuda: bool = True,
    ) -> None:
        """Register op ``name``.

        Args:
            name: Stem of the op; the dispatcher op is ``reidfast::<name>``.
            reference: Plain PyTorch with the schema's signature.
            triton: Launcher with the schema's signature, for CUDA tensors; None where the op has none or Triton is
                missing.
            triton_reason: Why ``triton`` is None.
            native_cuda: Whether csrc/cuda has a kernel for this op.
        """
        self.name = name
        self.reference = reference
        self.triton = triton
        self.triton_reason = triton_reason
        self.native_cuda = native_cuda
        self.native: Callable[..., Any] | None = None
        if _extension.extension is not None:
            packet = getattr(torch.ops.reidfast, name, None)  # None: sources newer than the build
            self.native = packet.default if packet is not None else None
        self.on: dict[str, Callable[..., Any]] = {}
        _OPS[name] = self
        self.choose(_forced)

    def reasons(self, backend: str, device: str) -> str:
        """Why ``backend`` cannot serve ``device``; empty when it can."""
        if backend == "reference":
            return ""
        if backend == "triton":
            if device != "cuda":
                return "Triton kernels need a CUDA device"
            return "" if self.triton is not None else self.triton_reason
        if self.native is None:
            return _extension.native_reason or "reidfast._C is older than these sources: build it again (make setup)"
        if device == "cuda":
            if not self.native_cuda:
                return "this op's GPU kernel is written in Triton"
            if not _extension.has_cuda:
                return f"built without CUDA: {_extension.cuda_reason}"
        return ""

    def choose(self, forced: str | None) -> None:
        """Put one implementation per device in force: ``forced``, or the first of BACKENDS that can run."""
        for device in DEVICES:
            order = (forced,) if forced else BACKENDS
            served = next((b for b in order if not self.reasons(b, device)), None)
            if served is None:
                self.on[device] = self._refuse(str(forced), device)
            else:
                self.on[device] = getattr(self, served)

    def serving(self, device: str) -> str:
        """Name of the backend in force on ``device``, or 'none'."""
        return next((b for b in BACKENDS if getattr(self, b) is self.on[device]), "none")

    def _refuse(self, backend: str, device: str) -> Callable[..., Any]:
        message = f"{self.name}: backend '{backend}' cannot serve {device}: {self.reasons(backend, device)}"

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(message)

        return refuse


def backends() -> dict[str, dict[str, dict[str, str]]]:
    """Per op and device: the backend in force, and for each that cannot run the reason.

    Returns:
        ``{op: {device: {"serves": backend, <other backend>: reason or "can run"}}}`` for devices "cpu" and "cuda".
    """
    table: dict[str, dict[str, dict[str, str]]] = {}
    for name, op in sorted(_OPS.items()):
        table[name] = {}
        for device in DEVICES:
            row = {"serves": op.serving(device)}
            row |= {b: op.reasons(b, device) or "can run" for b in BACKENDS if b != row["serves"]}
            table[name][device] = row
    return table


def implementations(op: str, device: str = "cpu") -> dict[str, Callable[..., Any]]:
    """Every implementation of ``op`` that can run on ``device``: name -> callable with the signature of the schema.

    Raises:
        ValueError: ``op`` is not the name of an op.
    """
    if op not in _OPS:
        raise ValueError(f"implementations: expected one of {', '.join(sorted(_OPS))}, got {op!r}")
    found = _OPS[op]
    return {b: getattr(found, b) for b in reversed(BACKENDS) if not found.reasons(b, device)}


def _check(name: str, origin: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{origin}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def _force(name: str | None) -> None:
    global _forced
    _forced = name
    for op in _OPS.values():
        op.choose(name)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op through one backend inside the ``with`` block, in all threads.

    Args:
        name: "native", "triton" or "reference". An op that has no such backend on the device at hand raises
            RuntimeError when called.
    """
    before = _forced
    _force(_check(name, "use_backend"))
    try:
        yield
    finally:
        _force(before)


if _wish := os.environ.get("REIDFAST_BACKEND"):
    _forced = _check(_wish, "REIDFAST_BACKEND")
