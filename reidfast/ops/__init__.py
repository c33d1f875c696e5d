# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Fused ops: tensors in, tensors out; CPU, CUDA and a plain PyTorch reference each.

Axes: B batch, S sets, T total frames, N bank rows or frames, M patches, K attention maps, L = H*W, D or d feature size.
"""

from __future__ import annotations

from reidfast.ops.diverse_attention import DiverseAttention, diverse_attention
from reidfast.ops.pool_patches import pool_patches
from reidfast.ops.sample_patches import sample_patches
from reidfast.ops.set_pool import set_pool

__all__ = ["DiverseAttention", "diverse_attention", "pool_patches", "sample_patches", "set_pool"]
