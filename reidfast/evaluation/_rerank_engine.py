# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The steps of re-ranking by device and backend."""

from __future__ import annotations

import torch

neighbours = torch.ops.reidfast.rerank_neighbours.default
neighbours_from_distances = torch.ops.reidfast.rerank_neighbours_from_distances.default
encode = torch.ops.reidfast.rerank_encode.default
jaccard = torch.ops.reidfast.rerank_jaccard.default
distances = torch.ops.reidfast.rerank_distances.default
