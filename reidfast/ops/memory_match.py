# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Matching of queries against a memory bank."""

from __future__ import annotations

from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from reidfast.ops._backends import Dispatch
from reidfast.ops._extension import extension
from reidfast.ops._memory import as_bank, check_logits, check_pair, check_rows, has_kernel, triton_reason
from reidfast.ops.reference.memory_match import memory_match as _reference


class MemoryMatch(NamedTuple):
    """What ``memory_match`` returns."""

    logsumexp: Tensor
    """[M, B] or [B]: log of the sum of exp(logit) over all rows that are not excluded."""
    topk_logits: Tensor
    """[M, B, k] or [B, k]: the k highest logits, best first."""
    topk_indices: Tensor
    """[M, B, k] or [B, k] int64: their rows."""


def memory_match(
    x: Tensor,
    bank: Tensor | numpy.ndarray,
    k: int,
    *,
    scale: float,
    metric: str = "sqeuclidean",
    exclude: Tensor | None = None,
) -> MemoryMatch:
    """Log-sum-exp over a memory bank and its k best rows, for every query, in one pass over the bank.

        l[m, b, n] = -scale * ||x[m, b] - bank[m, n]||^2      metric "sqeuclidean"
        l[m, b, n] =  scale * <x[m, b], bank[m, n]>           metric "dot"
        logsumexp[m, b] = log sum over n != exclude[b] of exp(l[m, b, n])

    Yang et al., "Patch-based Discriminative Feature Learning for Unsupervised Person Re-identification", CVPR 2019
    (with M patches, each with its own bank). Derivation and gradients: docs/ops/memory_match.md.

    Args:
        x: Queries, (M, B, d), or (B, d) for a single bank. float32, float64, float16 or bfloat16.
        bank: Rows, (M, N, d) or (N, d), on x's device, of x's dtype; half and float32 may be mixed. Rows whose d values
            are adjacent are not copied, whatever their stride. On the CPU also a ``numpy.memmap`` or a tensor of
            ``torch.from_file``: it is read tile by tile, so it may be larger than memory.
        k: How many best rows, from 1 to the usable rows.
        scale: Multiplier of the logits, any finite number. No value overflows: exponents are taken relative to the
            running maximum.
        metric: "sqeuclidean" or "dot".
        exclude: (B,) int64, for all M alike: this row is left out of everything for that query; -1: none is.

    Returns:
        MemoryMatch(logsumexp, topk_logits, topk_indices), in float32 for half inputs, else in x's dtype.
        Differentiable: logsumexp and topk_logits, in x, and in bank where it requires gradients.

    Raises:
        ValueError: Shapes, devices, metric or scale do not fit, or k is above the usable rows; on the CPU also exclude
            outside the bank.
        TypeError: Not floating point, float64 mixed with another dtype, exclude not int64, k not an integer.

    Notes:
        Best first, equal logits by lowest row. The k best logits are recomputed from the rows themselves, so that those
        of near duplicates are exact; rows whose logit is NaN rank last and make logsumexp NaN. Where a device cannot
        check (CUDA), missing rows have index -1 and logit -inf.
        Memory beyond the outputs: a few tiles per thread and O(M B (d + k)), whatever N; never (B, N). The gradient of
        a bank is as large as the bank. Deterministic, on the CPU for any number of threads. Double backward raises.
        On CUDA, plain PyTorch serves float64 and k above 128, with a (B, N) array.

    Example:
        >>> bank = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
        >>> found = memory_match(torch.tensor([[0.0, 2.0]]), bank, 2, scale=1.0)
        >>> found.topk_logits, found.topk_indices
        (tensor([[-1., -1.]]), tensor([[0, 2]]))
    """
    bank = as_bank(bank)
    check_pair("memory_match", x, bank)
    check_logits("memory_match", k, bank.shape[-2], scale, metric)
    if exclude is not None:
        check_rows("memory_match", "exclude", exclude, x)
    return MemoryMatch(*_OP.on[x.device.type](x, bank, k, scale, metric, exclude))


def _triton(
    x: Tensor, bank: Tensor, k: int, scale: float, metric: str, exclude: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The compiled op, whose CUDA kernels are Triton's, for what these take."""
    run = torch.ops.reidfast.memory_match.default if has_kernel(x, k) else _reference
    return run(x, bank, k, scale, metric, exclude)  # type: ignore[no-any-return]


_OP = Dispatch(
    "memory_match",
    reference=_reference,
    triton=None if triton_reason else _triton,
    triton_reason=triton_reason,
    native_cuda=False,
)

if extension is not None:

    @torch.library.register_fake("reidfast::memory_match")
    def _(
        x: Tensor, bank: Tensor, k: int, scale: float, metric: str, exclude: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(bank.dtype, torch.float32)
        shape = (*x.shape[:-1], k)
        return (
            x.new_empty(x.shape[:-1], dtype=wide),
            x.new_empty(shape, dtype=wide),
            x.new_empty(shape, dtype=torch.int64),
        )

    @torch.library.register_fake("reidfast::memory_match_forward")
    def _(
        x: Tensor, bank: Tensor, k: int, scale: float, metric: str, exclude: Tensor | None, needs: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        wide = torch.promote_types(bank.dtype, torch.float32)
        shape = (*x.shape[:-1], k)
        return (
            x.new_empty(x.shape[:-1], dtype=wide),
            x.new_empty(shape, dtype=wide),
            x.new_empty(shape, dtype=torch.int64),
            x.new_empty(x.shape[:-1], dtype=torch.float64) if needs[1] else None,
            x.new_empty(shape, dtype=torch.float64) if needs[1] else None,
            x.new_empty(x.shape, dtype=wide) if needs[0] else None,
        )

    @torch.library.register_fake("reidfast::memory_match_backward")
    def _(
        grad_lse: Tensor,
        grad_logits: Tensor,
        x: Tensor,
        bank: Tensor,
        indices: Tensor,
        state: Tensor | None,
        shares: Tensor | None,
        direction: Tensor | None,
        scale: float,
        metric: str,
        exclude: Tensor | None,
        needs: list[bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        return x.new_empty(x.shape) if needs[0] else None, bank.new_empty(bank.shape) if needs[1] else None
