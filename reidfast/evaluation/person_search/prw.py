# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Which boxes are right by the protocol of PRW."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reidfast.evaluation._core.metrics import Ints
from reidfast.evaluation.person_search.boxes import box_iou
from reidfast.evaluation.person_search.inputs import SearchTable


class PrwLabels:
    """Whom each detection shows, by PRW's rule."""

    JUNK, NOBODY = -1, -2

    def __init__(self, table: SearchTable, iou: float) -> None:
        self.table, self.iou = table, iou
        order = np.argsort(table.true_image, kind="stable")
        self.order, self.ends = order, np.searchsorted(table.true_image[order], np.arange(table.images + 1))
        self.shared = None
        if table.det_query is None:
            self.shared = self._label(np.arange(len(table.det_image)))

    def _label(self, rows: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """(person of each row, JUNK or NOBODY; which true boxes were found) for detections that compete."""
        t = self.table
        person = np.full(len(rows), self.NOBODY, np.int64)
        seen = np.zeros(len(t.true_pid), bool)
        by_image = np.argsort(t.det_image[rows], kind="stable")
        ends = np.searchsorted(t.det_image[rows][by_image], np.arange(t.images + 1))
        for image in np.flatnonzero(np.diff(ends)):
            boxes, true = by_image[ends[image] : ends[image + 1]], self.order[self.ends[image] : self.ends[image + 1]]
            if not len(true):
                continue
            overlap = box_iou(t.det_box[rows[boxes], None], t.true_box[true], inclusive=True)
            best = overlap.argmax(1)
            value = overlap[np.arange(len(boxes)), best]
            good = value >= self.iou
            seen[true[best[good]]] = True
            pids = np.where(good, np.maximum(t.true_pid[true[best]], self.JUNK), self.NOBODY)
            pids[~good & (value >= 0.3)] = self.JUNK
            for pid in np.unique(pids[pids >= 0]):
                same = np.flatnonzero(pids == pid)
                pids[np.delete(same, value[same].argmax())] = self.JUNK
            person[boxes] = pids
        return person, seen

    def judge(self, q: int, rows: Ints, searched: NDArray[np.bool_]) -> tuple[Ints, int, NDArray[np.bool_]]:
        """Positions of right boxes, how many there are to find, and which rows count at all."""
        t = self.table
        assert t.cameras is not None
        if self.shared is None:
            person, seen = self._label(rows)
        else:
            person, seen = self.shared[0][rows], self.shared[1]
        home = t.home[q]
        elsewhere = t.cameras != t.cameras[home] if home >= 0 else np.ones(t.images, bool)
        same, far = person == t.pids[q], elsewhere[t.det_image[rows]]
        inside = searched[t.det_image[rows]]
        allowed = inside & (person != self.JUNK) & ~(same & ~far)
        hits = np.flatnonzero(same & far & inside)
        missed = (t.true_pid == t.pids[q]) & elsewhere[t.true_image] & searched[t.true_image] & ~seen
        return hits, len(hits) + int(missed.sum()), allowed
