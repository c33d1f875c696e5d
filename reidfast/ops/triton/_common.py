# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What every Triton kernel here uses, on Triton 3.6 and 3.7.

Rules for kernels: load, ``.to(tl.float32)``, compute, ``narrow`` at the store; products through ``dot``; no libdevice,
no block pointers; sizes that become addresses are cast to int64 first. Then the same kernel is right under
``TRITON_INTERPRET=1`` on CPU tensors, which is how the tests run it where there is no GPU: the interpreter computes
with the raw bits of bfloat16 values and truncates when it converts to them.

``TRITON_INTERPRET`` must be set before a module with kernels is imported; one process has one mode.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INTERP = tl.constexpr(INTERPRETED)

TRITON_TYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 -> dtype, to nearest even also in the interpreter (which flushes subnormal bfloat16 results to zero)."""
    if INTERP:  # noqa: SIM102  (nested: both conditions are settled while compiling)
        if dtype == tl.bfloat16:
            bits = x.to(tl.int32, bitcast=True)
            rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
            x = tl.where(x == x, rounded, 0x7FC00000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def dot(a, b, acc, precision: tl.constexpr):
    """Acc + a @ b, accumulated in float32. precision, for float32 operands: "ieee", "tf32" or "tf32x3".

    It has no default: Triton 3.6 takes the default of a jitted function for an ordinary value.
    """
    if INTERP:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=precision)


def autotune(configs: Sequence[triton.Config], key: Sequence[str], **options: Any) -> Callable[[Any], Any]:
    """``triton.autotune`` over a small stated list, its choices kept on disk; the first entry alone when interpreting.

    Args:
        configs: Best guess first: it is what the interpreter and ahead-of-time compilation use. ``REIDFAST_AUTOTUNE=N``
            takes place N of every list (the last of shorter ones) and measures nothing.
        key: Arguments whose change asks for a new search. Pass sizes rounded by ``bucket``, or every batch searches.
        options: Passed on to ``triton.autotune``.
    """
    place = "0" if INTERPRETED else os.environ.get("REIDFAST_AUTOTUNE", "")
    if place:
        if not place.isdecimal():
            raise ValueError(
                f"REIDFAST_AUTOTUNE: expected a place in the lists of choices, 0 for the first, got {place!r}"
            )
        return triton.autotune(configs=[configs[min(int(place), len(configs) - 1)]], key=list(key), **options)
    return triton.autotune(configs=list(configs), key=list(key), cache_results=True, **options)


def bucket(size: int) -> int:
    """The next power of two: sizes in one bucket share one autotuned choice."""
    return triton.next_power_of_2(max(1, int(size)))


def device_scope(x: torch.Tensor) -> Any:
    """Makes ``x``'s device the current one, which is where Triton launches; nothing to do for the interpreter."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
