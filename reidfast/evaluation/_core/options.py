# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Checks of the options that evaluation's functions share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from reidfast.evaluation._core.metrics import AP_RULES, PROTOCOLS

METRICS = ("cosine", "euclidean", "sqeuclidean", "dot")
COSINE, EUCLIDEAN, SQEUCLIDEAN, DOT = range(4)
PRECISIONS = ("float32", "tf32x3", "certified", "bf16")


def check_choice(op: str, name: str, value: Any, choices: Iterable[str]) -> None:
    """``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{op}: expected {name} to be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_count(op: str, name: str, value: Any) -> int:
    """``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{op}: expected {name} to be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{op}: expected {name} >= 1, got {value}")
    return int(value)


def metric_number(op: str, metric: Any) -> int:
    """The number by which the kernels know ``metric``."""
    check_choice(op, "metric", metric, METRICS)
    return METRICS.index(metric)


def ap_rule(op: str, protocol: Any, average_precision: Any) -> str:
    """The rule of average precision in force."""
    check_choice(op, "protocol", protocol, PROTOCOLS)
    if average_precision is None:
        return PROTOCOLS[protocol].average_precision
    check_choice(op, "average_precision", average_precision, AP_RULES)
    return str(average_precision)
