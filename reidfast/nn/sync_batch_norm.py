# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Batch norm over the batches of all processes, on any device and any backend of torch.distributed."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from reidfast.nn.gather import world_size

__all__ = ["SyncBatchNorm", "convert_sync_batch_norm"]


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose training statistics are those of the global batch.

        mean, var    over the rows and cells of all processes (counts may differ)
        y = (x - mean) / sqrt(var + eps) weight + bias
        running <- (1 - momentum) running + momentum (mean, unbiased var)

    Parameters, buffers and state-dict keys are those of ``nn.BatchNorm1d/2d``, as is what it computes in evaluation
    mode and with one process. ``torch.nn.SyncBatchNorm`` does the same on GPUs only; this one also runs on the CPU
    over gloo, so that training on two processes can be compared with one.

    Args:
        num_features: C of inputs (B, C, ...).
        eps: As in ``nn.BatchNorm2d``.
        momentum: As in ``nn.BatchNorm2d``.
        affine: As in ``nn.BatchNorm2d``.
        track_running_stats: As in ``nn.BatchNorm2d``.
        group: Process group; None: all.

    Notes:
        Each process sends count, mean and squared deviations, which are merged in rank order in float64 (Chan, Golub,
        LeVeque 1979); the backward pass sums two vectors. Half inputs are normalised in float32. Every process gets
        the same bits, whatever the number of threads.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.group = group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"SyncBatchNorm: expected (B, {self.num_features}, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """``(B, C, ...)`` to the same shape."""
        if not self.training or world_size(self.group) == 1:
            return super().forward(input)
        self._check_input_dim(input)
        normalised, mean, variance, count = _Normalise.apply(input, self.eps, self.group)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                factor = 1.0 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
                unbiased = variance * (count / (count - 1).clamp(min=1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)
        if not self.affine:
            return normalised.to(input.dtype, copy=True)  # what follows may work in place
        shape = (1, -1, *(1,) * (input.dim() - 2))
        scaled = torch.addcmul(self.bias.view(shape), normalised, self.weight.view(shape))
        return scaled.to(input.dtype)


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps), with the statistics of all processes, and these statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, eps: float, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        dims = [0, *range(2, x.dim())]
        cells = x.numel() // max(1, x.shape[1])
        if cells:
            variance, mean = torch.var_mean(wide, dims, correction=0)
        else:
            variance, mean = wide.new_zeros(x.shape[1]), wide.new_zeros(x.shape[1])
        own = torch.cat([mean.double(), variance.double() * cells, mean.new_full((1,), cells, dtype=torch.float64)])
        parts = [torch.empty_like(own) for _ in range(world_size(group))]
        dist.all_gather(parts, own, group=group)
        means, squares, counts = torch.stack(parts).split([x.shape[1], x.shape[1], 1], 1)  # [W, C], [W, C], [W, 1]
        count = counts.sum()
        mean = (means * counts).sum(0) / count
        variance = (squares + counts * (means - mean).square()).sum(0) / count
        shape = (1, -1, *(1,) * (x.dim() - 2))
        scale = (variance + eps).rsqrt().to(wide.dtype)
        out = (wide - mean.to(wide.dtype).view(shape)) * scale.view(shape)
        ctx.save_for_backward(out, scale, count)
        ctx.group, ctx.dtype = group, x.dtype
        ctx.mark_non_differentiable(mean, variance, count)
        return out, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        out, scale, count = ctx.saved_tensors
        grad = grads[0]
        dims = [0, *range(2, out.dim())]
        shape = (1, -1, *(1,) * (out.dim() - 2))
        sums = torch.stack([grad.sum(dims), (grad * out).sum(dims)]).double()
        dist.all_reduce(sums, group=ctx.group)
        mean_grad, mean_product = (sums / count).to(out.dtype)
        grad_x = (grad - mean_grad.view(shape) - out * mean_product.view(shape)) * scale.view(shape)
        return grad_x.to(ctx.dtype), None, None


def convert_sync_batch_norm(module: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Replace every batch norm below (or at) ``module`` by a ``SyncBatchNorm`` that shares its parameters and buffers.

    Returns:
        ``module``, changed in place, or the replacement where ``module`` itself is a batch norm.
    """
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        new = SyncBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats, group
        )
        new.weight, new.bias = module.weight, module.bias
        new.running_mean, new.running_var = module.running_mean, module.running_var
        new.num_batches_tracked = module.num_batches_tracked
        return new.train(module.training)
    for name, child in module.named_children():
        replaced = convert_sync_batch_norm(child, group)
        if replaced is not child:
            setattr(module, name, replaced)
    return module
