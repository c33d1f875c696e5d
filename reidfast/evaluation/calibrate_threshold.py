# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A threshold for a rate of false alarms."""

from __future__ import annotations

from typing import Any

import numpy as np

from reidfast._arrays import to_numpy


def calibrate_threshold(impostor_distances: Any, far: float) -> float:
    """The largest threshold at which at most a share `far` of the impostor distances lies below it.

    Args:
        impostor_distances: Distances that should be refused, any shape: of unknown people to their nearest gallery row
            for open-set identification, of pairs of different people for verification.
        far: False-alarm rate in [0, 1].

    Returns:
        The (floor(far N) + 1)-th smallest distance; inf where far N >= N. Accept what is strictly below.

    Raises:
        ValueError: no distance, a NaN, or far outside [0, 1].

    Example:
        >>> calibrate_threshold([0.4, 0.1, 0.3, 0.2], 0.25)
        0.2
    """
    op = "calibrate_threshold"
    d = to_numpy(impostor_distances).astype(np.float64).ravel()
    if not 0.0 <= far <= 1.0:
        raise ValueError(f"{op}: expected far in [0, 1], got {far!r}")
    if len(d) == 0 or np.isnan(d).any():
        raise ValueError(f"{op}: expected at least one distance and no NaN, got {len(d)} distances")
    # a hair above the product, so that 0.29 * 100 means 29
    place = int(np.floor(far * len(d) * (1 + 1e-12)))
    return float(np.partition(d, place)[place]) if place < len(d) else float("inf")
