# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Call overhead in units of torch.mul's, which moves far less with the machine's load than microseconds do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def call_overhead(call: Callable[[], Any], *, rounds: int = 9) -> float:
    """Time of ``call`` over that of ``torch.mul`` with gradient on three numbers: the median of ``rounds`` ratios."""
    from torch.utils.benchmark import Timer

    a, b = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    ours, mul = Timer("f()", globals={"f": call}), Timer("f()", globals={"f": lambda: torch.mul(a, b)})
    ours.timeit(200), mul.timeit(200)
    ratios = sorted(ours.timeit(1000).mean / mul.timeit(1000).mean for _ in range(rounds))
    return ratios[rounds // 2]
