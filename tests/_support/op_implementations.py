# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""All that can answer a call of an op: every backend on every device, and CUDA kernels in the emulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cuda_emu import emulated
from torch import Tensor

from reidfast import implementations
from reidfast.ops import _backends
from reidfast.testing import devices, shape_id


def names(op: str, *, reference: bool = True) -> list[tuple[str, str]]:
    """(device, implementation) of an op, "cuda_emu" for its emulated CUDA kernels; Triton's have tests of their own."""
    listed = [(d, n) for d in devices() for n in implementations(op, d) if reference or n != "reference"]
    return listed if _backends.ENTRIES[op].triton else [*listed, ("cpu", "cuda_emu")]


def get(op: str, device: str, name: str) -> Callable[..., Any]:
    """One of them, with the inputs of the op's schema."""
    return emulated(op) if name == "cuda_emu" else implementations(op, device)[name]


def every_implementation(op: str, *, reference: bool = True) -> Any:
    """A fixture: the op by each of them, which brings the tensors it is given to its device."""

    @pytest.fixture(params=names(op, reference=reference), ids=shape_id)
    def implementation(request: pytest.FixtureRequest) -> Callable[..., Any]:
        device, name = request.param
        function = get(op, device, name)
        return lambda *inputs: function(*(x.to(device) if isinstance(x, Tensor) else x for x in inputs))

    return implementation
