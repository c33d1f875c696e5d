# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Softmax attention, weighted pooling and overlap of the attention maps in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def diverse_attention(features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled features, attention and overlap; signature of ``reidfast::diverse_attention``.

    sqrt(attention) is taken as exp(log attention / 2), whose gradient with respect to the logits is finite where the
    attention underflows to zero.
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    x, z = features.flatten(2).to(wide), logits.flatten(2).to(wide)
    attention = z.softmax(-1)
    pooled = attention @ x.transpose(1, 2)
    root = torch.exp(0.5 * z.log_softmax(-1))
    apart = 1 - torch.eye(z.shape[1], dtype=wide, device=z.device)  # the diagonal of the Gram matrix is 1: no overlap
    overlap = (root @ root.transpose(1, 2) * apart).square().sum((1, 2))
    return pooled.to(features.dtype), attention.to(features.dtype), overlap
