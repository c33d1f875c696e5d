# cython: boundscheck=False, wraparound=False, cdivision=True, language_level=3
# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What torchreid's compiled evaluator does, restated: sort every row, gather a Q x G table of matches, walk each row."""

import numpy as np


def market1501(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, max_rank):
    """(CMC, mAP), float32 inside as the peer has it."""
    cdef float[:, :] d = np.asarray(distances, np.float32)
    cdef long[:] qp = np.asarray(query_ids, np.int64), gp = np.asarray(gallery_ids, np.int64)
    cdef long[:] qc = np.asarray(query_cameras, np.int64), gc = np.asarray(gallery_cameras, np.int64)
    cdef long nq = d.shape[0], ng = d.shape[1], ranks = min(max_rank, ng)
    cdef long[:, :] order = np.argsort(np.asarray(d), axis=1)
    cdef long[:, :] match = (np.asarray(gp)[np.asarray(order)] == np.asarray(qp)[:, None]).astype(np.int64)
    cdef float[:, :] curves = np.zeros((nq, ranks), np.float32)
    cdef float[:] raw = np.zeros(ng, np.float32), running = np.zeros(ng, np.float32)
    cdef float total_ap = 0, valid = 0, hits, ap
    cdef long q, g, j, kept, any_match
    for q in range(nq):
        kept = 0
        any_match = 0
        for g in range(ng):
            j = order[q, g]
            if gp[j] != qp[q] or gc[j] != qc[q]:
                raw[kept] = match[q, g]
                kept += 1
                if match[q, g]:
                    any_match = 1
        if not any_match:
            continue
        hits = 0
        for g in range(kept):
            hits += raw[g]
            running[g] = hits
        for g in range(ranks):
            curves[q, g] = 1 if running[g] > 0 else 0
        ap = 0
        for g in range(kept):
            ap += running[g] / (g + 1.0) * raw[g]
        total_ap += ap / hits
        valid += 1
    return np.asarray(curves).sum(0) / valid, total_ap / valid
