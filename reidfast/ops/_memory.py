# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Checks that the memory-bank ops share."""

from __future__ import annotations

import warnings
from typing import Any

import numpy
import torch
from torch import Tensor

from reidfast.ops._checks import check_choice, check_float, check_int64, check_same_device, found

METRICS = ("sqeuclidean", "dot")


def as_bank(bank: Any) -> Any:
    """A numpy array (``numpy.memmap`` too) as a tensor on the same memory; anything else as it is."""
    if not isinstance(bank, numpy.ndarray):
        return bank
    with warnings.catch_warnings():  # a read-only file is fine: matching never writes
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(bank)


def check_pair(op: str, x: Any, bank: Any) -> None:
    """``x`` is (M, B, d) or (B, d), ``bank`` (M, N, d) or (N, d): dtypes, device and sizes fit."""
    check_float(op, "x", x)
    check_float(op, "bank", bank)
    a, b = x.shape, bank.shape
    if len(a) != len(b) or not 2 <= len(a) <= 3 or a[-1] != b[-1] or (len(a) == 3 and a[0] != b[0]):
        raise ValueError(
            f"{op}: expected x (M, B, d) and bank (M, N, d) with the same M and d, or (B, d) and (N, d), "
            f"got {tuple(a)} and {tuple(b)}"
        )
    check_same_device(op, "bank", bank, "x", x)


def both_wide(x: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 where one of them is; half types and float32 may be mixed."""
    return (x.double(), bank.double()) if torch.float64 in (x.dtype, bank.dtype) else (x, bank)


def check_rows(op: str, name: str, rows: Any, x: Tensor) -> None:
    """``rows`` is int64 (B,) on x's device."""
    check_int64(op, name, rows)
    if rows.shape != x.shape[-2:-1]:
        raise ValueError(f"{op}: expected {name} of shape (B,) with B={x.shape[-2]}, got {tuple(rows.shape)}")
    check_same_device(op, name, rows, "x", x)


def check_logits(op: str, k: Any, rows: int, scale: Any, metric: Any) -> None:
    """``k`` (where not None) is an integer from 1 to N, ``scale`` a finite number, ``metric`` one of METRICS."""
    if k is not None:
        if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)):
            raise TypeError(f"{op}: expected k to be an integer, got {found(k)}")
        if k < 1 or k > rows:
            raise ValueError(f"{op}: expected k from 1 to the usable rows of the bank (N={rows}), got k={k}")
    if not isinstance(scale, (int, float, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{op}: expected scale to be a number, got {found(scale)}; pass float(scale)")
    if isinstance(scale, (int, float)) and scale - scale != 0:  # math.isfinite takes no scale that torch.compile traces
        raise ValueError(f"{op}: expected a finite scale, got {scale}")
    if metric not in METRICS:
        check_choice(op, "metric", metric, METRICS)
