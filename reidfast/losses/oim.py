# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Online instance matching: a table of labelled identities and a queue of unlabelled features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reidfast import ops


class OIMLoss(nn.Module):
    """Cross-entropy of each feature against a memory of identities, which it then updates.

        L = mean over labelled i of logsumexp_j(scale x_i . w_j) - scale x_i . w_{y_i}     j over table and queue
        then, in batch order:  w_{y_i} <- normalize(momentum w_{y_i} + (1 - momentum) x_i)
        and unlabelled x_i enter the queue

    Xiao et al., "Joint Detection and Identification Feature Learning for Person Search", CVPR 2017. Renormalisation
    after each write as in open-reid. Through ``ops.memory_loss`` and ``ops.memory_update_``: no (B, C) array.

    Args:
        num_classes: Rows C of the table.
        dim: Feature size d.
        scale: 1 / temperature; 30 in open-reid's script, 10 in the person-search network.
        momentum: Weight of the old row.
        queue: Slots of the circular queue of unlabelled features (5,000 in person search); 0 = none.
        normalize: Whether rows are renormalised after each write.

    Notes:
        The table starts at zero, as published. ``forward`` updates in training mode only. Rows of ``features`` are
        expected to have unit length.
    """

    table: Tensor
    queue: Tensor
    next_slot: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        scale: float = 30.0,
        momentum: float = 0.5,
        queue: int = 0,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if num_classes < 1 or dim < 1 or queue < 0:
            raise ValueError(
                f"OIMLoss: expected num_classes, dim >= 1 and queue >= 0, got {num_classes}, {dim}, {queue}"
            )
        self.scale, self.momentum, self.normalize = scale, momentum, normalize
        self.register_buffer("table", torch.zeros(num_classes, dim))
        self.register_buffer("queue", torch.zeros(queue, dim))
        self.register_buffer("next_slot", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Features (B, d), labels (B,) int64, -1 = unlabelled -> scalar; 0 where nothing is labelled."""
        if features.dim() != 2 or features.shape[1] != self.table.shape[1] or labels.shape != features.shape[:1]:
            raise ValueError(
                f"OIMLoss: expected features (B, {self.table.shape[1]}) and labels (B,), "
                f"got {tuple(features.shape)} and {tuple(labels.shape)}"
            )
        labelled = labels >= 0
        bank = torch.cat([self.table, self.queue]).to(features.dtype)
        losses = ops.memory_loss(features, bank, targets=labels.clamp(min=0), scale=self.scale, metric="dot")
        loss = (losses * labelled).sum() / labelled.sum().clamp(min=1)
        if self.training:
            self.update(features, labels)
        return loss

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Write labelled features into the table and unlabelled ones (-1) into the queue, in batch order."""
        values = features.detach().to(self.table.dtype)
        ops.memory_update_(self.table, labels, values, momentum=self.momentum, normalize=self.normalize)
        slots = len(self.queue)
        if slots:
            new = (labels < 0).to(torch.int64)
            place = (self.next_slot + new.cumsum(0) - 1) % slots
            # momentum 0: the row becomes the value; -1 = skip.
            ops.memory_update_(self.queue, torch.where(labels < 0, place, -1), values, momentum=0.0)
            self.next_slot.add_(new.sum()).remainder_(slots)
