# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Evaluation protocols and exact search: torch, numpy or cupy in, nothing of size queries x gallery inside."""

from __future__ import annotations

from reidfast.evaluation._metrics import Ranking
from reidfast.evaluation._rerank_variants import RerankVariant
from reidfast.evaluation.adaptation import database_augmentation, query_expansion, subtract_camera_mean
from reidfast.evaluation.graphs import cluster, knn_graph
from reidfast.evaluation.nearest import search
from reidfast.evaluation.open_set import OpenSet, calibrate_threshold, open_set
from reidfast.evaluation.person_search import (
    Detections,
    PersonSearch,
    SearchQueries,
    SearchTruth,
    box_iou,
    person_search,
    person_search_sweep,
)
from reidfast.evaluation.ranking import rank, rank_distances
from reidfast.evaluation.reranking import Reranked, jaccard_graph, rank_reranked, rerank, rerank_distances
from reidfast.evaluation.single_shot import sampled_cmc
from reidfast.evaluation.verification import Roc, roc

__all__ = [
    "Detections",
    "OpenSet",
    "PersonSearch",
    "Ranking",
    "RerankVariant",
    "Reranked",
    "Roc",
    "SearchQueries",
    "SearchTruth",
    "box_iou",
    "calibrate_threshold",
    "cluster",
    "database_augmentation",
    "jaccard_graph",
    "knn_graph",
    "open_set",
    "person_search",
    "person_search_sweep",
    "query_expansion",
    "rank",
    "rank_distances",
    "rank_reranked",
    "rerank",
    "rerank_distances",
    "roc",
    "sampled_cmc",
    "search",
    "subtract_camera_mean",
]
