# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Evaluation protocols and exact search: torch, numpy or cupy in, nothing of size queries x gallery inside."""

from __future__ import annotations

from reidfast.evaluation._core.metrics import AP_RULES, PROTOCOLS, Ranking
from reidfast.evaluation._core.options import METRICS
from reidfast.evaluation._core.rerank_variants import RerankVariant
from reidfast.evaluation._core.reranking import Reranked
from reidfast.evaluation.calibrate_threshold import calibrate_threshold
from reidfast.evaluation.cluster import cluster
from reidfast.evaluation.database_augmentation import database_augmentation
from reidfast.evaluation.jaccard_graph import jaccard_graph
from reidfast.evaluation.knn_graph import knn_graph
from reidfast.evaluation.open_set import OpenSet, open_set
from reidfast.evaluation.person_search import (
    Detections,
    PersonSearch,
    SearchQueries,
    SearchTruth,
    box_iou,
    person_search,
    person_search_sweep,
)
from reidfast.evaluation.query_expansion import query_expansion
from reidfast.evaluation.rank import rank
from reidfast.evaluation.rank_distances import rank_distances
from reidfast.evaluation.rank_reranked import rank_reranked
from reidfast.evaluation.rerank import rerank
from reidfast.evaluation.rerank_distances import rerank_distances
from reidfast.evaluation.roc import Roc, roc
from reidfast.evaluation.sampled_cmc import sampled_cmc
from reidfast.evaluation.search import search
from reidfast.evaluation.subtract_camera_mean import subtract_camera_mean

__all__ = [
    "AP_RULES",
    "METRICS",
    "PROTOCOLS",
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
