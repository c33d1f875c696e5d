# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Which boxes are right by the protocol of CUHK-SYSU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reidfast.evaluation._core.metrics import Floats, Ints
from reidfast.evaluation.person_search.boxes import box_iou
from reidfast.evaluation.person_search.inputs import SearchTable


def cuhk_hits(
    table: SearchTable,
    q: int,
    rows: Ints,
    similarity: Floats,
    searched: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
    iou: float,
) -> tuple[Ints, int]:
    """Positions in `rows` of the right boxes, and in how many searched images the person is."""
    true = np.flatnonzero((table.true_pid == table.pids[q]) & searched[table.true_image])
    image_of, first = np.unique(table.true_image[true], return_index=True)
    true = true[first]  # one box an image: the first listed
    box_of = np.full(table.images, -1, np.int64)
    box_of[image_of] = true
    candidates = np.flatnonzero(allowed & (box_of[table.det_image[rows]] >= 0))
    target = table.true_box[box_of[table.det_image[rows[candidates]]]]
    width, height = target[:, 2] - target[:, 0], target[:, 3] - target[:, 1]
    needed = np.minimum(iou, width * height / ((width + 10) * (height + 10)))
    candidates = candidates[box_iou(table.det_box[rows[candidates]], target) >= needed]
    image = table.det_image[rows[candidates]]
    order = np.lexsort((rows[candidates], -similarity[candidates], image))
    candidates, image = candidates[order], image[order]
    best = candidates[np.r_[True, image[1:] != image[:-1]]] if len(candidates) else candidates
    return best, len(true)
