# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Which implementation serves an op on a device, and how to overrule it.

Three backends: ``native`` (compiled: csrc/cpu, csrc/cuda), ``triton`` (a Triton kernel, the CUDA kernel of some ops)
and ``reference`` (plain PyTorch). By default torch's dispatcher takes the kernel that is registered for the tensors'
device, and the reference serves devices without one. ``REIDFAST_BACKEND`` or ``use_backend`` overrule that.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

BACKENDS = ("native", "triton", "reference")
DEVICES = ("cpu", "cuda")


class Entry(Protocol):
    """What ``backends()`` and ``use_backend`` ask of an op."""

    name: str

    def reasons(self, backend: str, device: str) -> str:
        """Why ``backend`` cannot serve ``device``; empty when it can."""

    def choose(self, forced: str | None) -> None:
        """Put an implementation in force."""

    def kernel(self, backend: str) -> Callable[..., Any]:
        """The implementation of a backend."""


ENTRIES: dict[str, Entry] = {}
_forced: str | None = None


def add(entry: Entry) -> None:
    """List an op in ``backends()`` and let ``use_backend`` reach it."""
    ENTRIES[entry.name] = entry
    entry.choose(_forced)


def forced() -> str | None:
    """The backend that ``use_backend`` or REIDFAST_BACKEND demands, or None."""
    return _forced


@cache
def triton_reason() -> str:
    """Why Triton's kernels cannot run; empty when they can."""
    return "" if importlib.util.find_spec("triton") else "Triton is not installed (pip install triton)"


def _serving(entry: Entry, device: str) -> str:
    order = (_forced,) if _forced else BACKENDS
    return next((b for b in order if not entry.reasons(b, device)), "none")


def backends() -> dict[str, dict[str, dict[str, str]]]:
    """Per op and device: the backend in force, and for each that cannot run the reason.

    Returns:
        ``{op: {device: {"serves": backend, <other backend>: reason or "can run"}}}`` for devices "cpu" and "cuda". All
        other devices are served by the reference.
    """
    table: dict[str, dict[str, dict[str, str]]] = {}
    for name, entry in sorted(ENTRIES.items()):
        table[name] = {}
        for device in DEVICES:
            row = {"serves": _serving(entry, device)}
            row |= {b: entry.reasons(b, device) or "can run" for b in BACKENDS if b != row["serves"]}
            table[name][device] = row
    return table


def implementations(op: str, device: str = "cpu") -> dict[str, Callable[..., Any]]:
    """Every implementation of ``op`` that can run on ``device``: name -> callable with the inputs of the schema.

    Raises:
        ValueError: ``op`` is not the name of an op.
    """
    if op not in ENTRIES:
        raise ValueError(f"implementations: expected one of {', '.join(sorted(ENTRIES))}, got {op!r}")
    entry = ENTRIES[op]
    return {b: entry.kernel(b) for b in reversed(BACKENDS) if not entry.reasons(b, device)}


def _check(name: str, origin: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{origin}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def _force(name: str | None) -> None:
    global _forced
    _forced = name
    for entry in ENTRIES.values():
        entry.choose(name)


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
