# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Results for people: ranked lists in pictures, CMC curves, one HTML page."""

from .page import write_page
from .pictures import draw_ranked_lists
from .plots import plot_cmc
from .rankings import RankedList, rank_queries

__all__ = ["RankedList", "draw_ranked_lists", "plot_cmc", "rank_queries", "write_page"]
