# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Evaluation by brute force: slow, short, and the truth in tests."""

from __future__ import annotations

from reidfast.testing.reference.ranking import rank_distances
from reidfast.testing.reference.reranking import (
    base_distances,
    dense_jaccard,
    dense_rerank,
    dense_rerank_distances,
)

__all__ = ["base_distances", "dense_jaccard", "dense_rerank", "dense_rerank_distances", "rank_distances"]
