# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Checks that several ops share. Messages: ``<op>: expected <what>, got <what was found>``.

Ops are called on small tensors, so a passing check costs well under a microsecond: conditions first, words only on
failure.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_FLOAT_SET = frozenset(FLOATS)


def found(value: Any) -> str:
    """What a user handed in, in a few words: dtype, shape and device of a tensor, else type and value."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r:.80}"


def check_float(op: str, name: str, x: Any) -> None:
    """``x`` is a tensor of one of the four floating-point dtypes."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: expected {name} to be a torch.Tensor, got {found(x)}")
    if x.dtype not in _FLOAT_SET:
        raise TypeError(f"{op}: expected {name} of dtype float32, float64, float16 or bfloat16, got {found(x)}")


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Floating-point tensors in their widest dtype; those that have it are returned as they are."""
    wide = tensors[0].dtype
    for x in tensors[1:]:
        wide = torch.promote_types(wide, x.dtype)
    return tuple(x.to(wide) for x in tensors)


def beside(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """``y`` in x's dtype or float32, as kernels take small tensors beside a map; float64 makes both float64."""
    if x.dtype == y.dtype:
        return x, y
    if torch.float64 in (x.dtype, y.dtype):
        return x.double(), y.double()
    return x, y.float()


def check_int64(op: str, name: str, x: Any) -> None:
    """``x`` is an int64 tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: expected {name} to be a torch.Tensor, got {found(x)}")
    if x.dtype != torch.int64:
        raise TypeError(f"{op}: expected {name} of dtype int64, got {found(x)}; call .long()")


def check_same_device(op: str, name: str, x: Tensor, other: str, y: Tensor) -> None:
    """``x`` and ``y`` live on one device."""
    if x.device != y.device:
        raise ValueError(f"{op}: expected {name} on {other}'s device {y.device}, got {x.device}")


def check_choice(op: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    """``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{op}: expected {name} to be one of {', '.join(map(repr, choices))}, got {value!r}")
