# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Fused ops: tensors in, tensors out; CPU, CUDA and a plain PyTorch reference each.

Axes: B batch, S sets, T total frames, N bank rows or frames, M patches, K attention maps, L = H*W, D or d feature size.
"""

from __future__ import annotations

from reidfast.ops.batch_hard import BatchHard, batch_hard
from reidfast.ops.cyclic_negatives import cyclic_negatives
from reidfast.ops.diverse_attention import DiverseAttention, diverse_attention
from reidfast.ops.gated_update import gated_update
from reidfast.ops.grad_cam import grad_cam
from reidfast.ops.memory_loss import memory_loss
from reidfast.ops.memory_match import MemoryMatch, memory_match
from reidfast.ops.memory_update import memory_update_
from reidfast.ops.pool_patches import pool_patches
from reidfast.ops.query_lstm_cell import QueryLstmState, query_lstm_cell
from reidfast.ops.region_scores import region_scores
from reidfast.ops.sample_patches import sample_patches
from reidfast.ops.set_pool import set_pool

__all__ = [
    "BatchHard",
    "DiverseAttention",
    "MemoryMatch",
    "QueryLstmState",
    "batch_hard",
    "cyclic_negatives",
    "diverse_attention",
    "gated_update",
    "grad_cam",
    "memory_loss",
    "memory_match",
    "memory_update_",
    "pool_patches",
    "query_lstm_cell",
    "region_scores",
    "sample_patches",
    "set_pool",
]
