# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Context managers that change a global setting and put it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with ``count`` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def isa(name: str) -> Iterator[None]:
    """Run the CPU kernels in "default", "avx2" or "avx512"; ValueError where this processor lacks it."""
    from reidfast.ops import _library

    if not _library.loaded:
        raise ValueError("isa: the native library is not built here")
    before = _library.isa()
    _library.set_isa(name)
    try:
        yield
    finally:
        _library.set_isa(before)


@contextmanager
def nan_poison() -> Iterator[None]:
    """Fill every fresh uninitialised tensor with NaN (the largest integer): an output that is not written shows."""
    config = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), config.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    config.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        config.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]
