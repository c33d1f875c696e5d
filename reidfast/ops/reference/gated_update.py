# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Gate of the refining recurrent unit in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def gated_update(channel: Tensor, spatial: Tensor, state: Tensor, x: Tensor) -> Tensor:
    """Blend of the state and the input; signature of ``reidfast::gated_update``."""
    z = torch.sigmoid(spatial[:, None] * channel[:, :, None, None])
    return (1 - z) * state + z * x
