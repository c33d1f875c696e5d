# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Which implementation serves each of evaluation's internal ops (torch.ops.reidfast_eval.*)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from reidfast.ops import _backends, _library

_STEPS: list[Dispatch] = []


class Dispatch:
    """The implementations of one internal op, and the one in force per device type: ``dispatch.on[device_type]``."""

    def __init__(
        self,
        name: str,
        *,
        reference: Callable[..., Any],
        triton: Callable[..., Any] | None = None,
        triton_reason: str = "this op has no Triton kernel",
        native_cuda: bool = True,
    ) -> None:
        """Register internal op ``name``.

        Args:
            name: The dispatcher op is ``reidfast_eval::<name>``.
            reference: Plain PyTorch with the schema's signature.
            triton: Function on Triton kernels with the schema's signature, for CUDA tensors; None where there is none.
            triton_reason: Why ``triton`` is None.
            native_cuda: Whether csrc/cuda has a kernel for this op.
        """
        self.name = name
        self.reference = reference
        self.triton = triton
        self.triton_reason = triton_reason
        self.native_cuda = native_cuda
        self.native: Callable[..., Any] | None = None
        if _library.loaded:
            packet = getattr(torch.ops.reidfast_eval, name, None)
            self.native = _interruptible(packet.default) if packet is not None else None
        self.on: dict[str, Callable[..., Any]] = {}
        _STEPS.append(self)
        self.choose(_backends.forced())

    def reasons(self, backend: str, device: str) -> str:
        """Why ``backend`` cannot serve ``device``; empty when it can."""
        if backend == "reference":
            return ""
        if backend == "triton":
            if device != "cuda":
                return "Triton kernels need a CUDA device"
            return "" if self.triton is not None else self.triton_reason
        if self.native is None:
            return _library.native_reason or f"libreidfast.so has no {self.name}: build it again (make setup)"
        if device == "cuda":
            return _library.cuda_reason if self.native_cuda else "this op's GPU kernel is written in Triton"
        return ""

    def choose(self, forced: str | None) -> None:
        """Put one implementation per device in force: ``forced``, or the first that can run."""
        for device in _backends.DEVICES:
            order = (forced,) if forced else _backends.BACKENDS
            served = next((b for b in order if not self.reasons(b, device)), None)
            self.on[device] = getattr(self, served) if served else self._refuse(str(forced), device)

    def serving(self, device: str) -> str:
        """Name of the backend in force on ``device``, or 'none'."""
        return next((b for b in _backends.BACKENDS if getattr(self, b) is self.on[device]), "none")

    def _refuse(self, backend: str, device: str) -> Callable[..., Any]:
        message = f"{self.name}: backend '{backend}' cannot serve {device}: {self.reasons(backend, device)}"

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(message)

        return refuse


def _interruptible(op: Callable[..., Any]) -> Callable[..., Any]:
    """The op; where Ctrl-C stopped it, KeyboardInterrupt is raised."""

    def run(*args: Any) -> Any:
        try:
            return op(*args)
        except RuntimeError as error:
            _library.raise_interrupt(error)
            raise

    return run


class _Evaluation:
    """Evaluation as one entry of ``reidfast.backends()``."""

    name = "evaluation"

    def reasons(self, backend: str, device: str) -> str:
        if backend == "native":
            return _library.native_reason or ("its GPU kernels are written in Triton" if device == "cuda" else "")
        if backend == "triton":
            return _backends.triton_reason() if device == "cuda" else "Triton kernels need a CUDA device"
        return ""

    def choose(self, forced: str | None) -> None:
        for step in _STEPS:
            step.choose(forced)

    def kernel(self, backend: str) -> Callable[..., Any]:
        from reidfast.evaluation import rank

        return rank


_backends.add(_Evaluation())
