# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A convolutional LSTM whose gates also see a query that stays the same over the steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reidfast import ops

__all__ = ["QueryConvLSTM"]


class QueryConvLSTM(nn.Module):
    """Convolutional LSTM with the query in its gates.

        i_t = sigmoid(W_xi * x_t + W_hi * h_{t-1} + W_qi * q + w_ci o c_{t-1} + b_i)
        f_t = sigmoid(W_xf * x_t + W_hf * h_{t-1} + W_qf * q + w_cf o c_{t-1} + b_f)
        g_t = tanh   (W_xg * x_t + W_hg * h_{t-1} + W_qg * q + b_g)
        c_t = f_t o c_{t-1} + i_t o g_t
        o_t = sigmoid(W_xo * x_t + W_ho * h_{t-1} + W_qo * q + w_co o c_t + b_o)
        h_t = o_t o tanh(c_t)

    Liu et al., "Neural Person Search Machines", ICCV 2017. `query_gates` is computed once a query and `input_gates`
    once a region, whatever the number of pairs of the two; a step then costs the convolution of h and one pass of
    ``ops.query_lstm_cell``, and the first step, where h is zero, only the pass.

    Args:
        channels: Channels of x and q.
        hidden: Dh, of h and c.
        kernel: Size of the convolutions, odd.
        query_in_candidate: Whether q enters g_t as well (False: the three gates only).
        peephole: The terms w_c, one weight a channel (zero at the start).
        forget_bias: Start of b_f.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        kernel: int = 3,
        query_in_candidate: bool = True,
        peephole: bool = False,
        forget_bias: float = 1.0,
    ) -> None:
        super().__init__()
        if channels < 1 or hidden < 1 or kernel < 1 or kernel % 2 == 0:
            raise ValueError(
                f"QueryConvLSTM: expected channels, hidden >= 1 and an odd kernel, got {channels}, {hidden}, {kernel}"
            )
        self.hidden, self.query_in_candidate = hidden, query_in_candidate
        pad = kernel // 2
        self.input = nn.Conv2d(channels, 4 * hidden, kernel, padding=pad)
        self.recurrent = nn.Conv2d(hidden, 4 * hidden, kernel, padding=pad, bias=False)
        self.query = nn.Conv2d(channels, (4 if query_in_candidate else 3) * hidden, kernel, padding=pad, bias=False)
        self.peephole = nn.Parameter(torch.zeros(3, hidden, 1, 1)) if peephole else None
        for conv in (self.input, self.recurrent, self.query):
            nn.init.xavier_uniform_(conv.weight)
        with torch.no_grad():
            assert self.input.bias is not None
            self.input.bias.zero_()
            self.input.bias[hidden : 2 * hidden] = forget_bias

    def query_gates(self, query: Tensor) -> Tensor:
        """What the query adds to the gates, [Q, 4*Dh, K, K] of [Q, C, K, K]: once a query."""
        out: Tensor = self.query(query)
        if self.query_in_candidate:
            return out
        i, f, o = out.chunk(3, 1)
        return torch.cat([i, f, torch.zeros_like(i), o], 1)

    def input_gates(self, x: Tensor) -> Tensor:
        """What the input adds to the gates, biases included, [B, 4*Dh, K, K] of [B, C, K, K]: once a region."""
        out: Tensor = self.input(x)
        return out

    def step(
        self, input_gates: Tensor, query_gates: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """New (h, c), [B, Dh, K, K] each.

        Args:
            input_gates: [B, 4*Dh, K, K], or [1, ...] for all.
            query_gates: [B, 4*Dh, K, K], or [1, ...] for all.
            state: (h, c) of the step before; None: zeros.
        """
        if len(input_gates) == 1 and len(query_gates) > 1 and state is None:
            input_gates, query_gates = query_gates, input_gates  # they are only added: the single one is broadcast
        batch, _, height, width = input_gates.shape
        if state is None:
            c = input_gates.new_zeros(batch, self.hidden, height, width)
            gates = input_gates
        else:
            h, c = state
            gates = input_gates + self.recurrent(h)
        if self.peephole is not None:
            zero = torch.zeros_like(c)
            inner = gates + torch.cat([self.peephole[0] * c, self.peephole[1] * c, zero, zero], 1)
            c_new = ops.query_lstm_cell(inner, query_gates, c).c  # o_t sees c_t, so c_t comes first
            gates = inner + torch.cat([zero, zero, zero, self.peephole[2] * c_new], 1)
        return ops.query_lstm_cell(gates, query_gates, c)

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        """h_1 ... h_T, [T, B, Dh, K, K], of a sequence known before, [T, B, C, K, K], and queries [B or 1, C, K, K]."""
        if x.dim() != 5 or query.dim() != 4:
            raise ValueError(
                f"QueryConvLSTM: expected x (T, B, C, K, K) and query (B, C, K, K), got {tuple(x.shape)} and "
                f"{tuple(query.shape)}"
            )
        inputs = self.input_gates(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # all steps at once
        fixed = self.query_gates(query)
        out, state = [], None
        for gates in inputs:
            state = self.step(gates, fixed, state)
            out.append(state[0])
        return torch.stack(out)
