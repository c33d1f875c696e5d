# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""One small call of every public op, for checks that treat all ops alike.

``CASES[name](case)`` returns the call and its tensors; the call takes the tensors and returns one or several. Values
that decide something (distances, logits) are well apart, so that every dtype decides alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reidfast import ops

Call = Callable[..., object]


@dataclass
class Case:
    """Where random inputs come from: the same values for every device and dtype."""

    dtype: torch.dtype
    device: str
    odd: bool = False  # sizes that are no multiple of anything
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(11))

    def randn(self, *shape: int, scale: float = 1.0) -> Tensor:
        x = torch.randn(*shape, generator=self.generator, dtype=torch.float64) * scale
        return x.to(torch.float16).to(torch.bfloat16).to(self.device, self.dtype)  # exact in every dtype

    def rand(self, *shape: int) -> Tensor:
        x = torch.rand(*shape, generator=self.generator, dtype=torch.float64) + 0.05
        return x.to(torch.float16).to(torch.bfloat16).to(self.device, self.dtype)

    def ints(self, high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=self.generator).to(self.device)

    def size(self, even: int) -> int:
        return even - 1 if self.odd else even


def set_pool(case: Case) -> tuple[Call, list[Tensor]]:
    d = case.size(64)
    offsets = torch.tensor([0, 3, 3, 10, 17], device=case.device)
    return lambda x, s: ops.set_pool(x, s, offsets, weighting="sigmoid"), [case.randn(17, d), case.rand(17)]


def set_pool_dense(case: Case) -> tuple[Call, list[Tensor]]:
    return lambda x, s: ops.set_pool(x, s), [case.randn(3, 5, case.size(64)), case.rand(3, 5)]


def memory_match(case: Case) -> tuple[Call, list[Tensor]]:
    bank, exclude = case.randn(2, case.size(150), 32), torch.tensor([-1, 0, 5, 7, -1], device=case.device)
    return lambda x: ops.memory_match(x, bank, 3, scale=0.5, exclude=exclude), [case.randn(2, 5, 32)]


def memory_loss(case: Case) -> tuple[Call, list[Tensor]]:
    bank = case.randn(2, case.size(150), 32)
    return lambda x: ops.memory_loss(x, bank, 4, scale=0.1), [case.randn(2, 5, 32)]


def memory_loss_targets(case: Case) -> tuple[Call, list[Tensor]]:
    targets = torch.tensor([3, 0, 9, 3], device=case.device)
    return lambda x, w: ops.memory_loss(x, w, targets=targets, scale=0.2, metric="dot"), [
        case.randn(4, 32),
        case.randn(case.size(40), 32),
    ]


def memory_update_(case: Case) -> tuple[Call, list[Tensor]]:
    indices = torch.tensor([3, 1, 3, -1, 3], device=case.device)

    def call(bank: Tensor, values: Tensor) -> Tensor:
        bank = bank.detach().clone()
        ops.memory_update_(bank, indices, values.detach(), momentum=0.9, normalize=True)
        return bank

    return call, [case.randn(2, 6, case.size(32)), case.randn(2, 5, case.size(32))]


def theta(case: Case, patches: int = 3) -> Tensor:
    base = torch.tensor([[0.8, 0.05, 0.1], [0.0, 0.35, -0.3]], dtype=torch.float64)
    noise = torch.randn(2, patches, 2, 3, generator=case.generator, dtype=torch.float64)
    return (base + 0.03 * noise).to(case.device, torch.float32).to(case.dtype)


def sample_patches(case: Case) -> tuple[Call, list[Tensor]]:
    return lambda x, t: ops.sample_patches(x, t, (5, 4)), [case.randn(2, case.size(16), 9, 7), theta(case)]


def pool_patches(case: Case) -> tuple[Call, list[Tensor]]:
    return lambda x, t: ops.pool_patches(x, t), [case.randn(2, case.size(16), 9, 7), theta(case)]


def diverse_attention(case: Case) -> tuple[Call, list[Tensor]]:
    return ops.diverse_attention, [case.randn(3, case.size(64), 8, 4), case.randn(3, 4, 8, 4)]


def batch_hard(case: Case) -> tuple[Call, list[Tensor]]:
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 0], device=case.device)
    return lambda x: ops.batch_hard(x, labels), [case.randn(9, case.size(64))]


def cyclic_negatives(case: Case) -> tuple[Call, list[Tensor]]:
    own = torch.arange(20, device=case.device) % 10
    centres, noise = case.randn(10, case.size(32)), case.randn(20, case.size(32), scale=0.25)
    return lambda a, c: ops.cyclic_negatives(a.detach(), c.detach(), own, r=3), [centres[own] + noise, centres]


def query_lstm_cell(case: Case) -> tuple[Call, list[Tensor]]:
    d = case.size(8)
    return ops.query_lstm_cell, [case.randn(3, 4 * d, 7, 5), case.randn(1, 4 * d, 7, 5), case.randn(3, d, 7, 5)]


def gated_update(case: Case) -> tuple[Call, list[Tensor]]:
    c = case.size(16)
    return ops.gated_update, [case.randn(2, c), case.randn(2, 8, 5), case.randn(2, c, 8, 5), case.randn(2, c, 8, 5)]


def region_scores(case: Case) -> tuple[Call, list[Tensor]]:
    boxes = torch.tensor([[0.0, 0.0, 3.0, 4.0], [2.2, 1.1, 6.7, 5.9], [4.6, 4.6, 4.8, 4.8]], device=case.device)
    index = torch.tensor([0, 1, 1], device=case.device)
    return lambda a: ops.region_scores(a, boxes.to(a.dtype), index), [case.rand(2, 8, case.size(8))]


def grad_cam(case: Case) -> tuple[Call, list[Tensor]]:
    return ops.grad_cam, [case.randn(2, case.size(32), 8, 4), case.randn(2, case.size(32))]


ALL = {
    "set_pool": set_pool,
    "set_pool dense": set_pool_dense,
    "memory_match": memory_match,
    "memory_loss": memory_loss,
    "memory_loss targets": memory_loss_targets,
    "memory_update_": memory_update_,
    "sample_patches": sample_patches,
    "pool_patches": pool_patches,
    "diverse_attention": diverse_attention,
    "batch_hard": batch_hard,
    "cyclic_negatives": cyclic_negatives,
    "query_lstm_cell": query_lstm_cell,
    "gated_update": gated_update,
    "region_scores": region_scores,
    "grad_cam": grad_cam,
}
CASES = {name: case for name, case in ALL.items() if hasattr(ops, name.split()[0])}


def leaves(result: object) -> list[Tensor]:
    """The tensors of a result, in order."""
    return [result] if isinstance(result, Tensor) else list(result)


def forward_backward(call: Call, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, then the gradients of a fixed weighted sum of the differentiable ones for every input."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    outputs = leaves(call(*inputs))
    graph = [o for o in outputs if o.requires_grad]
    if not graph:
        return outputs
    finite = [torch.where(torch.isfinite(o), o, 0).double() for o in graph]
    weights = [torch.cos(torch.arange(o.numel(), device=o.device).double()).view(o.shape) for o in finite]
    total = sum((o * w).sum() for o, w in zip(finite, weights, strict=True))
    grads = torch.autograd.grad(total, inputs, allow_unused=True)
    return [o.detach() for o in outputs] + [g for g in grads if g is not None]
