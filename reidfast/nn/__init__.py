# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Modules over ``reidfast.ops``: the parts that the methods are built from."""

from __future__ import annotations

from reidfast.nn.diverse_attention import DiverseAttention
from reidfast.nn.gather import gather_rows
from reidfast.nn.grad_cam import (
    GradCAM,
    closed_form_reason,
    frozen_layers,
    frozen_mode,
    grad_cam_from_pooled,
    grad_cam_from_score,
)
from reidfast.nn.memory_bank import MemoryBank
from reidfast.nn.patch_generator import FixedPatches, PatchGenerator
from reidfast.nn.quality import QualityPool, QualityUnit
from reidfast.nn.query_conv_lstm import QueryConvLSTM
from reidfast.nn.region_shrinkage import RegionTree
from reidfast.nn.roi_pool import roi_align, roi_max_pool, roi_pool
from reidfast.nn.rru import RRU, RRUState
from reidfast.nn.stim import STIM, STIMState
from reidfast.nn.sync_batch_norm import SyncBatchNorm, convert_sync_batch_norm
from reidfast.nn.temporal import TemporalAttention, TimePool

__all__ = [
    "RRU",
    "STIM",
    "DiverseAttention",
    "FixedPatches",
    "GradCAM",
    "MemoryBank",
    "PatchGenerator",
    "QualityPool",
    "QualityUnit",
    "QueryConvLSTM",
    "RRUState",
    "RegionTree",
    "STIMState",
    "SyncBatchNorm",
    "TemporalAttention",
    "TimePool",
    "closed_form_reason",
    "convert_sync_batch_norm",
    "frozen_layers",
    "frozen_mode",
    "gather_rows",
    "grad_cam_from_pooled",
    "grad_cam_from_score",
    "roi_align",
    "roi_max_pool",
    "roi_pool",
]
