# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Results for people: ranked lists in pictures, CMC curves, one HTML page."""

from .attention import draw_attention, overlay
from .page import write_page
from .patches import draw_patches, patch_corners
from .pictures import draw_ranked_lists
from .plots import plot_cmc
from .rankings import RankedList, rank_queries
from .tracklet_attention import draw_tracklet_attention, explain_tracklet
from .tracklets import TrackletRow, describe_tracklets, draw_tracklets

__all__ = [
    "RankedList",
    "TrackletRow",
    "describe_tracklets",
    "draw_attention",
    "draw_patches",
    "draw_ranked_lists",
    "draw_tracklet_attention",
    "draw_tracklets",
    "explain_tracklet",
    "overlay",
    "patch_corners",
    "plot_cmc",
    "rank_queries",
    "write_page",
]
