# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Hard negatives by cyclic ranking."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reidfast.ops._checks import check_float, check_int64, check_same_device, found, promote
from reidfast.ops._op import Op
from reidfast.ops.reference.cyclic_negatives import cyclic_negatives as _reference


def cyclic_negatives(anchors: Tensor, centres: Tensor, own: Tensor, *, r: int, candidates: int = 15) -> Tensor:
    """Nearest centre of each anchor that does not in turn count the anchor's own centre among its r nearest.

        C_a  = the first min(candidates, B-1) centres v != own_a by (||f_a - c_v||, v)
        v accepted  <=>  own_a is not among the first r of all centres w by (||c_v - c_w||, w), v itself standing first
        out_a = the first accepted v of C_a, else -1

    The mining of PAUL's image-level feature learning (Yang et al., "Patch-based Discriminative Feature Learning for
    Unsupervised Person Re-identification", CVPR 2019): a near neighbour that is a mutual one is probably the same
    person, so it is no trustworthy negative. Algorithm: docs/ops/cyclic_negatives.md.

    Args:
        anchors: Features f, (A, D), float32, float64, float16 or bfloat16. Any strides.
        centres: Features c, (B, D), dtype and device of anchors.
        own: Index of each anchor's own centre, (A,) int64, in [0, B).
        r: Length of a candidate's list of nearest centres, itself included; at least 1. Where r >= B nothing can be
            accepted.
        candidates: How many centres to examine per anchor; at least 1.

    Returns:
        (A,) int64: the index of the accepted centre, -1 where there is none. No gradient.

    Raises:
        ValueError: Shapes or devices do not fit, r or candidates below 1; on the CPU also own outside [0, B).
        TypeError: Not floating point, own not int64, or r or candidates not an integer.

    Notes:
        Ties go by index, in both rankings; the result equals the plain loop's on data full of ties. Distances are sums
        of squared differences, exact for near duplicates; a NaN distance counts as infinite. Half types accumulate in
        float32. Memory O(B + A * candidates). Deterministic, on the CPU for any number of threads. On CUDA an own
        outside [0, B) gives -1.

    Example:
        >>> centres = torch.tensor([[0.0], [1.0], [2.5], [9.0]])
        >>> cyclic_negatives(torch.tensor([[0.2]]), centres, torch.tensor([0]), r=2)
        tensor([2])
    """
    out: Tensor = _OP(anchors, centres, own, r, candidates)
    return out


def _check(anchors: Tensor, centres: Tensor, own: Tensor, r: int, candidates: int) -> tuple[Any, ...]:
    check_float("cyclic_negatives", "anchors", anchors)
    check_float("cyclic_negatives", "centres", centres)
    check_int64("cyclic_negatives", "own", own)
    if anchors.dim() != 2 or centres.dim() != 2 or anchors.shape[1] != centres.shape[1]:
        raise ValueError(
            f"cyclic_negatives: expected anchors (A, D) and centres (B, D) with one D, "
            f"got {tuple(anchors.shape)} and {tuple(centres.shape)}"
        )
    if own.dim() != 1 or own.shape[0] != anchors.shape[0]:
        raise ValueError(
            f"cyclic_negatives: expected own of shape (A,) with A={anchors.shape[0]} to match anchors, got "
            f"{tuple(own.shape)}"
        )
    check_same_device("cyclic_negatives", "centres", centres, "anchors", anchors)
    check_same_device("cyclic_negatives", "own", own, "anchors", anchors)
    for name, value in (("r", r), ("candidates", candidates)):
        if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
            raise TypeError(f"cyclic_negatives: expected {name} to be an integer, got {found(value)}")
    if r < 1 or candidates < 1:
        raise ValueError(f"cyclic_negatives: expected r >= 1 and candidates >= 1, got r={r}, candidates={candidates}")
    return (*promote(anchors, centres), own, r, candidates)


def _fake(anchors: Tensor, centres: Tensor, own: Tensor, r: int, candidates: int) -> Tensor:
    return own.new_empty(own.shape)


_OP = Op("cyclic_negatives", reference=_reference, check=_check, fake=_fake, tensors=3)
