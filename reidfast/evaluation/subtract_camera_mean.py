# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Features without what their camera has in common."""

from __future__ import annotations

from typing import Any

import torch

from reidfast._arrays import like
from reidfast.evaluation._core.expansion import unit
from reidfast.evaluation._core.features import read_features
from reidfast.evaluation._core.labels import read_integers


def subtract_camera_mean(
    features: Any, camids: Any, *, reference: Any = None, reference_camids: Any = None, normalize: bool = True
) -> Any:
    """Every feature minus the mean feature of its camera: what the cameras themselves look like goes.

        y_i = x_i - mean of { x_j : camera_j = camera_i },  x of unit length first, y of unit length again (normalize)

    Args:
        features: (N, D), torch, numpy or cupy.
        camids: (N,) integers, the camera of each.
        reference: Features that the means are taken of, (M, D); None = `features` themselves. Give queries and gallery
            together here (or one after the other in `features`): few queries make poor means.
        reference_camids: (M,) integers; needed with `reference`.
        normalize: Whether to scale to unit length before and after; the mean of raw features weighs long ones more.

    Returns:
        float32 (N, D), of the kind and on the device of `features`.

    Raises:
        ValueError: shapes that do not fit, one of reference and reference_camids alone, or a camera without reference.

    Notes:
        A camera of one single row becomes zero there (distance 1 to everything under cosine).

    Example:
        >>> import torch
        >>> subtract_camera_mean(torch.eye(2), torch.tensor([0, 0]), normalize=False).tolist()
        [[0.5, -0.5], [-0.5, 0.5]]
    """
    op = "subtract_camera_mean"
    x = read_features(op, "features", features).matrix()
    own = read_integers(op, "camids", camids, len(x), "features")
    if (reference is None) != (reference_camids is None):
        raise ValueError(f"{op}: expected reference and reference_camids together, got one of them")
    if reference is None:
        y, seen = x, own
    else:
        y = read_features(op, "reference", reference).matrix().to(x.device)
        seen = read_integers(op, "reference_camids", reference_camids, len(y), "reference")
        if y.shape[1] != x.shape[1]:
            raise ValueError(f"{op}: expected reference with D={x.shape[1]} to match features, got D={y.shape[1]}")
    known, group = seen.unique(return_inverse=True)
    place = torch.searchsorted(known, own).clamp_max(max(0, len(known) - 1))
    if len(own) and (len(known) == 0 or bool((known[place] != own).any())):
        missing = int(own[known[place] != own][0]) if len(known) else int(own[0])
        raise ValueError(f"{op}: expected reference features of every camera, got none of camera {missing}")
    if normalize:
        x, y = unit(x), unit(y)
    sums = torch.zeros(len(known), x.shape[1], dtype=torch.float64, device=x.device)
    sums.index_add_(0, group.to(x.device), y.double())
    means = sums / torch.bincount(group, minlength=len(known)).to(x.device)[:, None]
    out = (x.double() - means[place.to(x.device)]).float()
    return like(features, unit(out) if normalize else out)
