# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""One step of a convolutional LSTM whose gates see the query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reidfast.ops._checks import check_float, check_same_device, promote
from reidfast.ops._op import Op
from reidfast.ops.reference.query_lstm_cell import query_lstm_cell as _reference


class QueryLstmState(NamedTuple):
    """New hidden state and new cell state."""

    h: Tensor
    c: Tensor


def query_lstm_cell(gates: Tensor, query_gates: Tensor, c: Tensor) -> QueryLstmState:
    """One step of the query-conditioned convolutional LSTM, after its convolutions.

        (a_i, a_f, a_g, a_o) = gates + query_gates                      split along dim 1, in this order
        c' = sigmoid(a_f) c + sigmoid(a_i) tanh(a_g)
        h  = sigmoid(a_o) tanh(c')

    The recursion of neural person search machines (Liu et al., "Neural Person Search Machines", ICCV 2017). The query's
    terms do not change over the steps: convolve the query once and hand the result in. Peephole terms belong to the
    caller, who adds them to ``gates``. Derivation of the gradients: docs/ops/query_lstm_cell.md.

    Args:
        gates: Terms of the input and of the previous hidden state, biases included, (B, 4*Dh, H, W), float32, float64,
            float16 or bfloat16, contiguous or channels_last (other strides are copied).
        query_gates: Terms of the query, (B, 4*Dh, H, W) or (1, 4*Dh, H, W): one query for the whole batch.
        c: Previous cell state, (B, Dh, H, W). gates' dtype.

    Returns:
        QueryLstmState with h and c, both (B, Dh, H, W) in gates' dtype and memory format. Differentiable in all inputs.

    Raises:
        ValueError: Shapes or devices do not fit.
        TypeError: Not floating point.

    Notes:
        Half types compute in float32 and round once. The backward pass recomputes the activations: nothing is kept but
        the inputs. Deterministic, on the CPU for any number of threads. Double backward raises.

    Example:
        >>> gates = torch.zeros(1, 4, 1, 1)
        >>> h, c = query_lstm_cell(gates, gates, torch.ones(1, 1, 1, 1))
        >>> c
        tensor([[[[0.5000]]]])
    """
    return QueryLstmState(*_OP(gates, query_gates, c))


def _check(gates: Tensor, query_gates: Tensor, c: Tensor) -> tuple[Any, ...]:
    check_float("query_lstm_cell", "gates", gates)
    check_float("query_lstm_cell", "query_gates", query_gates)
    check_float("query_lstm_cell", "c", c)
    shape, query_shape, c_shape = gates.shape, query_gates.shape, c.shape
    if (
        len(shape) != 4
        or len(c_shape) != 4
        or shape[1] != 4 * c_shape[1]
        or shape[0] != c_shape[0]
        or shape[2:] != c_shape[2:]
        or len(query_shape) != 4
        or query_shape[1:] != shape[1:]
        or (query_shape[0] != shape[0] and query_shape[0] != 1)
    ):
        raise ValueError(
            f"query_lstm_cell: expected gates (B, 4*Dh, H, W), query_gates of that shape or (1, 4*Dh, H, W), and c "
            f"(B, Dh, H, W), got {tuple(shape)}, {tuple(query_shape)} and {tuple(c_shape)}"
        )
    check_same_device("query_lstm_cell", "query_gates", query_gates, "gates", gates)
    check_same_device("query_lstm_cell", "c", c, "gates", gates)
    return promote(gates, query_gates, c)


def _format(gates: Tensor) -> torch.memory_format:
    last = not gates.is_contiguous() and gates.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _fake(gates: Tensor, query_gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.empty_like(c, memory_format=_format(gates))
    return h, torch.empty_like(h)


def _backward_fake(
    grad_h: Tensor | None, grad_c_new: Tensor | None, gates: Tensor, query_gates: Tensor, c: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    memory_format = _format(gates)
    shared = query_gates.shape[0] != gates.shape[0]
    return (
        torch.empty_like(gates, memory_format=memory_format),
        torch.empty_like(query_gates, memory_format=memory_format) if shared else None,
        torch.empty_like(c, memory_format=memory_format),
    )


def _backward(
    op: Any, grads: tuple[Tensor | None, Tensor | None], tensors: tuple[Tensor, ...], others: Any, needs: Any
) -> Sequence[Tensor | None]:
    grad_gates, grad_query, grad_c = op(*grads, *tensors)
    return grad_gates, grad_gates if grad_query is None else grad_query, grad_c


_OP = Op(
    "query_lstm_cell",
    reference=_reference,
    check=_check,
    fake=_fake,
    backward_fake=_backward_fake,
    tensors=3,
    gradients=(0, 1, 2),
    backward=_backward,
    outputs=2,
)
