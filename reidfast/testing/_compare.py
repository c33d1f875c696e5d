# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Comparison of an implementation against a float64 truth, with plain PyTorch's own error as the yardstick."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if value is None:
        return []
    return [leaf for item in value for leaf in _leaves(item)]


def assert_no_worse(
    actual: Any, exact: Any, eager: Any, *, factor: float = 2.0, ulps: float = 4.0, terms: float = 0.0
) -> None:
    """Raise AssertionError unless ``actual`` is as near to ``exact`` as plain PyTorch in the same dtype is.

    The largest absolute error of each tensor must not exceed ``factor`` times that of ``eager``, plus a floor of
    ``ulps`` units in the last place of the largest exact value, or of ``terms`` where that is larger. Integer and
    boolean tensors must be equal. NaN and infinities must be in the same places.

    Args:
        actual: Result under test: a tensor, or a (nested) sequence of them, None allowed.
        exact: The same computed in float64 from the same (rounded) inputs.
        eager: The same computed by plain PyTorch in ``actual``'s dtype.
        factor: How much worse than plain PyTorch is still accepted.
        ulps: Floor in units in the last place.
        terms: Magnitude of what is added up: a sum that cancels keeps the rounding errors of its terms.
    """
    actual, exact, eager = _leaves(actual), _leaves(exact), _leaves(eager)
    if not len(actual) == len(exact) == len(eager):
        raise AssertionError(
            f"expected as many tensors as the reference gives ({len(exact)}), got {len(actual)} (eager: {len(eager)})"
        )
    for n, (a, x, e) in enumerate(zip(actual, exact, eager, strict=True)):
        if a.shape != x.shape:
            raise AssertionError(f"tensor {n}: expected shape {tuple(x.shape)}, got {tuple(a.shape)}")
        if not a.is_floating_point():
            if not torch.equal(a.cpu(), x.cpu()):
                at = (a.cpu() != x.cpu()).nonzero()[0].tolist()
                raise AssertionError(f"tensor {n}: expected {x[tuple(at)].item()}, got {a[tuple(at)].item()} at {at}")
            continue
        a64, x64, e64 = (t.detach().cpu().double() for t in (a, x, e))
        finite = x64.isfinite()
        if not torch.equal(a64[~finite].nan_to_num(7e300), x64[~finite].nan_to_num(7e300)) or not bool(
            a64[finite].isfinite().all()
        ):
            raise AssertionError(f"tensor {n}: NaN or infinities do not stand where the reference has them")
        if not bool(finite.any()):
            continue
        error = (a64 - x64)[finite].abs().max().item()
        eager_error = (e64 - x64)[finite].abs().nan_to_num(0).max().item()
        floor = ulps * torch.finfo(a.dtype).eps * max(x64[finite].abs().max().item(), terms, torch.finfo(a.dtype).tiny)
        if error > factor * eager_error + floor:
            raise AssertionError(
                f"tensor {n} ({a.dtype}, {tuple(a.shape)}): largest error {error:.3e}, expected at most "
                f"{factor} x {eager_error:.3e} (plain PyTorch) + {floor:.3e}"
            )
