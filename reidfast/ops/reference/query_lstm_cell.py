# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""One step of the query-conditioned convolutional LSTM, after its convolutions, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def query_lstm_cell(gates: Tensor, query_gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """New hidden and cell state; signature of ``reidfast::query_lstm_cell``."""
    i, f, g, o = (gates + query_gates).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c
