# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Evaluation protocols and exact search: torch, numpy or cupy in, nothing of size queries x gallery inside."""

from __future__ import annotations

from reidfast.evaluation._metrics import Ranking
from reidfast.evaluation.nearest import search
from reidfast.evaluation.ranking import rank, rank_distances
from reidfast.evaluation.single_shot import sampled_cmc
from reidfast.evaluation.verification import Roc, roc

__all__ = ["Ranking", "Roc", "rank", "rank_distances", "roc", "sampled_cmc", "search"]
