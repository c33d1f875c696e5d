# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Calls of every public op, for checks that treat all ops alike.

``CASES[name](case)`` returns the call and its tensors; the call takes the tensors and returns one or several. A name is
an op's, and behind it which of its paths: each weighting, metric, memory format and kind of argument that has code of
its own has a row. Values that decide something (distances, logits) are well apart, so that every dtype decides alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from reidfast import ops

Call = Callable[..., object]
Row = tuple[Call, list[Tensor]]


@dataclass
class Case:
    """Where random inputs come from: the same values for every device and dtype."""

    dtype: torch.dtype
    device: str
    # "odd": no multiple of anything; "tiny": few enough values for all finite differences; "large": several tiles, and
    # so much work that threads share it (the grain sizes in csrc/torch); "empty": a batch of 0
    sizes: str = "even"
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(11))

    def exact(self, x: Tensor) -> Tensor:
        """``x``, rounded to what every dtype can hold."""
        return x.to(torch.float16).to(torch.bfloat16).to(self.device, self.dtype)

    def randn(self, *shape: int, scale: float = 1.0, last: bool = False) -> Tensor:
        x = self.exact(torch.randn(*shape, generator=self.generator, dtype=torch.float64) * scale)
        return x.contiguous(memory_format=torch.channels_last) if last else x

    def rand(self, *shape: int) -> Tensor:
        return self.exact(torch.rand(*shape, generator=self.generator, dtype=torch.float64) + 0.05)

    def ints(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def size(self, even: int, large: int | None = None) -> int:
        """A number of features, channels or rows of a bank."""
        if self.sizes == "large":
            return large or even
        return {"odd": even - 1, "tiny": even // 8 + 1}.get(self.sizes, even)

    def batch(self, usual: int, large: int | None = None) -> int:
        """A number of images, queries, anchors or sets."""
        if self.sizes == "large":
            return large or usual
        return 0 if self.sizes == "empty" else usual


def set_pool(case: Case, weighting: str) -> Row:
    counts = torch.tensor([3, 0, 7, 7]) if case.sizes != "large" else case.ints(0, 9, 300)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts[: case.batch(4, 300)].cumsum(0)])
    frames, offsets = int(offsets[-1]), offsets.to(case.device)
    inputs = [case.randn(frames, case.size(64, 257)), case.rand(frames)]
    return lambda x, s: ops.set_pool(x, s, offsets, weighting=weighting), inputs


def set_pool_dense(case: Case, weighting: str, *lead: int) -> Row:
    frames = (case.batch(3, 300), *lead, 5)
    inputs = [case.randn(*frames, case.size(64, 257)), case.rand(*frames)]
    return lambda x, s: ops.set_pool(x, s, weighting=weighting), inputs


def bank_and_queries(case: Case, parts: bool) -> tuple[Tensor, Tensor]:
    """Large: with parts, several chunks of the bank; else two blocks of queries. Else without parts a single task."""
    lead = (2,) if parts else ()
    rows, dim = (case.size(150, 9000), case.size(32, 64)) if parts else (case.size(150, 300), case.size(32, 40))
    queries = case.batch(5, 40) if parts else case.batch(12, 200)
    return case.randn(*lead, rows, dim), case.randn(*lead, queries, dim)


def excluded(case: Case, queries: int) -> Tensor:
    return (torch.arange(queries) * 5 % 7 - 1).to(case.device)


def memory_match(case: Case) -> Row:
    bank, x = bank_and_queries(case, parts=True)
    exclude = excluded(case, x.shape[-2])
    return lambda x: ops.memory_match(x, bank, 3, scale=0.5, exclude=exclude), [x]


def memory_match_dot(case: Case) -> Row:
    bank, x = bank_and_queries(case, parts=False)
    return lambda x, w: ops.memory_match(x, w, 5, scale=0.3, metric="dot"), [x, bank]


def memory_match_both(case: Case) -> Row:
    bank, x = bank_and_queries(case, parts=True)
    exclude = excluded(case, x.shape[-2])
    return lambda x, w: ops.memory_match(x, w, 4, scale=0.1, exclude=exclude), [x, bank]


def memory_loss(case: Case) -> Row:
    bank, x = bank_and_queries(case, parts=True)
    return lambda x: ops.memory_loss(x, bank, 4, scale=0.1), [x]


def memory_loss_dot(case: Case) -> Row:
    bank, x = bank_and_queries(case, parts=False)
    exclude = excluded(case, x.shape[-2])
    return lambda x: ops.memory_loss(x, bank, 5, scale=0.2, metric="dot", exclude=exclude), [x]


def memory_loss_targets(case: Case, parts: bool, **options: object) -> Row:
    bank, x = bank_and_queries(case, parts)
    targets = (torch.arange(x.shape[-2]) % 3 + 6).to(case.device)
    exclude = excluded(case, x.shape[-2]) if parts else None
    return lambda x, w: ops.memory_loss(x, w, targets=targets, exclude=exclude, **options), [x, bank]


def memory_loss_small(case: Case) -> Row:
    """So little work that plain loops do it."""
    targets = torch.tensor([3, 0, 5, 3], device=case.device)[: case.batch(4)]
    inputs = [case.randn(case.batch(4), 32), case.randn(case.size(40), 32)]
    return lambda x, w: ops.memory_loss(x, w, targets=targets, scale=0.2, metric="dot"), inputs


def memory_update_(case: Case, *lead: int, normalize: bool = True) -> Row:
    count, dim = case.batch(5, 80), case.size(32, 256)
    indices = (torch.tensor([3, 1, 3, -1, 3]).repeat(16)[:count]).to(case.device)

    def call(bank: Tensor, values: Tensor) -> Tensor:
        bank = bank.detach().clone()
        ops.memory_update_(bank, indices, values.detach(), momentum=0.9, normalize=normalize)
        return bank

    return call, [case.randn(*lead, 6, dim), case.randn(*lead, count, dim)]


def map_and_theta(case: Case, channels: int, upright: bool, last: bool) -> list[Tensor]:
    """Large: so many channels that there are several blocks of them."""
    large = case.sizes == "large"
    maps, patches, cells = case.batch(2, 5), case.batch(3, 6) or 3, (12, 8) if large else (9, 7)
    theta = torch.tensor([[0.8, 0.05, 0.1], [0.0, 0.35, -0.3]], dtype=torch.float64)
    theta = theta + 0.03 * torch.randn(maps, patches, 2, 3, generator=case.generator, dtype=torch.float64)
    if upright:
        theta[..., 0, 1] = theta[..., 1, 0] = 0
    return [case.randn(maps, case.size(16, channels), *cells, last=last), case.exact(theta)]


def sample_patches(case: Case, last: bool = False) -> Row:
    size = (12, 8) if case.sizes == "large" else (5, 4)
    call = lambda x, t: ops.sample_patches(x, t, size, align_corners=not last)  # noqa: E731
    return call, map_and_theta(case, 200, upright=False, last=last)


def pool_patches(case: Case, upright: bool = False, last: bool = False) -> Row:
    call = lambda x, t: ops.pool_patches(x, t, align_corners=upright == last)  # noqa: E731
    return call, map_and_theta(case, 600, upright, last)


def diverse_attention(case: Case, last: bool = False) -> Row:
    maps = case.batch(3, 7)
    features = case.randn(maps, case.size(64, 700), 8, 4, last=last)
    return ops.diverse_attention, [features, case.randn(maps, case.batch(4, 6) or 4, 8, 4)]


def batch_hard(case: Case) -> Row:
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 0]) if case.sizes != "large" else torch.arange(150) * 7 % 40
    labels = labels[: case.batch(9, 150)].to(case.device)
    return lambda x: ops.batch_hard(x, labels), [case.randn(len(labels), case.size(64, 257))]


def mined(own: Tensor, r: int) -> Call:
    return lambda a, c: ops.cyclic_negatives(a, c, own, r=r)


def cyclic_negatives(case: Case) -> Row:
    own, dim = torch.arange(case.batch(20, 180)) % case.batch(10, 60), case.size(32, 300)
    centres = torch.randn(case.batch(10, 60) or 10, dim, generator=case.generator).to(torch.bfloat16)
    noise = 0.25 * torch.randn(len(own), dim, generator=case.generator)
    return mined(own.to(case.device), 3), [case.exact(centres[own] + noise), case.exact(centres)]


def cyclic_negatives_ties(case: Case) -> Row:
    own, dim = torch.arange(case.batch(20, 180)) % case.batch(10, 60), case.size(32, 300)
    centres = case.ints(-2, 3, case.batch(10, 60) or 10, dim).double()
    return mined(own.to(case.device), 4), [case.exact(centres[own] + 1), case.exact(centres)]


def query_lstm_cell(case: Case, own: bool = False, last: bool = False) -> Row:
    images, d, cells = case.batch(3), case.size(8, 40), (14, 14) if case.sizes == "large" else (7, 5)
    gates = [case.randn(n, 4 * d, *cells, last=last) for n in (images, images if own else 1)]
    return ops.query_lstm_cell, [*gates, case.randn(images, d, *cells, last=last)]


def gated_update(case: Case, last: bool = False) -> Row:
    b, c, cells = case.batch(2, 3), case.size(16, 400), (8, 8) if case.sizes == "large" else (8, 5)
    state, x = case.randn(b, c, *cells, last=last), case.randn(b, c, *cells, last=last)
    return ops.gated_update, [case.randn(b, c), case.randn(b, *cells), state, x]


def region_scores(case: Case) -> Row:
    images, cells = case.batch(2, 6), (14, 14) if case.sizes == "large" else (8, case.size(8))
    boxes = torch.tensor([[0.0, 0.0, 3.0, 4.0], [2.2, 1.1, 6.7, 5.9], [4.6, 4.6, 4.8, 4.8]])[: case.batch(3)]
    index = torch.tensor([0, 1, 1])[: case.batch(3)]
    if case.sizes == "large":  # in eighths: exact in every dtype
        corners, extents = case.ints(-8, 120, 5000, 2), case.ints(0, 60, 5000, 2)
        boxes, index = torch.cat([corners, corners + extents], 1) / 8, case.ints(0, images, 5000)
    boxes, index = boxes.to(case.device), index.to(case.device)
    return lambda a: ops.region_scores(a, boxes.to(a.dtype), index), [case.rand(images, *cells)]


def grad_cam(case: Case, last: bool = False) -> Row:
    b, c, cells = case.batch(2, 3), case.size(32, 400), (16, 12) if case.sizes == "large" else (8, 4)
    return ops.grad_cam, [case.randn(b, c, *cells, last=last), case.randn(b, c)]


CASES: dict[str, Callable[[Case], Row]] = {
    "set_pool": partial(set_pool, weighting="sigmoid"),
    "set_pool softmax": partial(set_pool, weighting="softmax"),
    "set_pool linear": partial(set_pool, weighting="linear"),
    "set_pool dense": lambda case: set_pool_dense(case, "linear"),
    "set_pool dense softmax": lambda case: set_pool_dense(case, "softmax", 2),
    "memory_match": memory_match,
    "memory_match dot": memory_match_dot,
    "memory_match both gradients": memory_match_both,
    "memory_loss": memory_loss,
    "memory_loss dot": memory_loss_dot,
    "memory_loss targets": partial(memory_loss_targets, parts=True, scale=0.1),
    "memory_loss targets dot": partial(memory_loss_targets, parts=False, scale=0.2, metric="dot"),
    "memory_loss small": memory_loss_small,
    "memory_update_": lambda case: memory_update_(case, case.batch(2, 6) or 2),
    "memory_update_ flat": lambda case: memory_update_(case, normalize=False),
    "sample_patches": sample_patches,
    "sample_patches channels_last": partial(sample_patches, last=True),
    "pool_patches": pool_patches,
    "pool_patches channels_last": partial(pool_patches, last=True),
    "pool_patches upright": partial(pool_patches, upright=True),
    "pool_patches upright channels_last": partial(pool_patches, upright=True, last=True),
    "diverse_attention": diverse_attention,
    "diverse_attention channels_last": partial(diverse_attention, last=True),
    "batch_hard": batch_hard,
    "cyclic_negatives": cyclic_negatives,
    "cyclic_negatives ties": cyclic_negatives_ties,
    "query_lstm_cell": query_lstm_cell,
    "query_lstm_cell own": partial(query_lstm_cell, own=True),
    "query_lstm_cell channels_last": partial(query_lstm_cell, last=True),
    "query_lstm_cell own channels_last": partial(query_lstm_cell, own=True, last=True),
    "gated_update": gated_update,
    "gated_update channels_last": partial(gated_update, last=True),
    "region_scores": region_scores,
    "grad_cam": grad_cam,
    "grad_cam channels_last": partial(grad_cam, last=True),
}


def leaves(result: object) -> list[Tensor]:
    """The tensors of a result, in order."""
    return [result] if isinstance(result, Tensor) else list(result)


def forward_backward(call: Call, inputs: list[Tensor], wanted: Collection[int] | None = None) -> list[Tensor]:
    """Outputs, then the gradients of a fixed weighted sum of the differentiable ones for every (wanted) input."""
    wanted = range(len(inputs)) if wanted is None else wanted
    inputs = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    outputs = leaves(call(*inputs))
    graph = [o for o in outputs if o.requires_grad]
    if not graph:
        return outputs
    finite = [torch.where(torch.isfinite(o), o, 0).double() for o in graph]
    weights = [torch.cos(torch.arange(o.numel(), device=o.device).double()).view(o.shape) for o in finite]
    total = sum((o * w).sum() for o, w in zip(finite, weights, strict=True))
    grads = torch.autograd.grad(total, [inputs[i] for i in wanted], allow_unused=True)
    return [o.detach() for o in outputs] + [g for g in grads if g is not None]
