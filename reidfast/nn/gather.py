# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Rows of all processes in one tensor, with a gradient that data-parallel averaging turns into the right one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_rows", "world_size"]


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Number of processes; 1 where torch.distributed is not initialised."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def gather_rows(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The rows of every process below each other, in rank order: ``[B, ...]`` on each of W -> ``[W B, ...]``.

    A loss over the gathered rows sees the global batch. Backward sums the gradients that all processes hold for a
    process's own rows, so that the parameters' gradients, summed over processes, are those of the sum of the
    processes' losses. Where every process computes the same loss L of the gathered rows, that sum is W L, and the mean
    that ``DistributedDataParallel`` takes is the gradient of L: what one process with the whole batch would compute.

    Args:
        x: The same shape and dtype on every process. With one process it is returned as it is.
        group: Process group; None: all.

    Notes:
        Every process must call it, in the same order, and call backward if one does. Deterministic.

    Example:
        >>> gather_rows(torch.arange(3.0))
        tensor([0., 1., 2.])
    """
    if world_size(group) == 1:
        return x
    return _Gather.apply(x, group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group, ctx.rows = group, x.shape[0]
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(world_size(group))]
        dist.all_gather(parts, x, group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        start = dist.get_rank(ctx.group) * ctx.rows
        return total[start : start + ctx.rows], None
