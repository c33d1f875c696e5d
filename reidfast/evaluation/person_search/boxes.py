# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Overlap of boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from reidfast.evaluation._core.metrics import Floats


def box_iou(a: Any, b: Any, *, inclusive: bool = False) -> Floats:
    """Intersection over union of boxes (..., 4) with boxes (..., 4), broadcast.

    Args:
        a: x1, y1, x2, y2.
        b: x1, y1, x2, y2.
        inclusive: Corners are pixels that belong to the box, so a width is x2 - x1 + 1 (PASCAL's and PRW's way).

    Example:
        >>> float(box_iou([0, 0, 2, 2], [1, 0, 3, 2]).round(3))
        0.333
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    more = 1.0 if inclusive else 0.0
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]) + more
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]) + more
    both = np.maximum(width, 0) * np.maximum(height, 0)
    area_a = (a[..., 2] - a[..., 0] + more) * (a[..., 3] - a[..., 1] + more)
    area_b = (b[..., 2] - b[..., 0] + more) * (b[..., 3] - b[..., 1] + more)
    union = area_a + area_b - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)
