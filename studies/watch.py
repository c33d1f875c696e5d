# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What happens to the features while a network adapts: labels are looked at here, and nowhere in the training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from reidfast.evaluation import rank, subtract_camera_mean

K = 10


class Watch:
    """Collects a row of figures per evaluation; what it does leaves the training as it is.

    Attributes:
        rows: One dict per evaluation: means over the steps since the last one (`loss/...`, `gradient`), the first
            step's gradients of the two losses and their cosine, and what `describe` and `describe_memory` say.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._steps: dict[str, list[float]] = {}
        self._first: dict[str, float] | None = None
        self._losses: dict[str, Tensor] = {}

    def attach(self, task: Any) -> None:
        """Keep the two losses of a step, for their gradients."""
        for name in ("pedal", "ipfl"):
            loss = getattr(task, name, None)
            if isinstance(loss, nn.Module):
                loss.register_forward_hook(lambda module, inputs, out, name=name: self._losses.update({name: out}))

    def step(self, values: dict[str, Any], **options: Any) -> None:
        """What a step logs."""
        for name, value in values.items():
            self._steps.setdefault(name, []).append(float(value))

    def gradients(self, task: Any) -> None:
        """Of the first step since the last evaluation: each loss's own gradient, weighted as in the sum."""
        if self._first is not None or not self._losses:
            return
        parameters = [p for p in task.model.parameters() if p.requires_grad]
        flat = {}
        for name, loss in self._losses.items():
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            weight = getattr(task.config.loss, name)
            flat[name] = weight * torch.cat([g.flatten() for g in gradients if g is not None])
        self._first = {f"gradient/{name}": float(g.norm()) for name, g in flat.items()}
        if len(flat) == 2:
            self._first["gradient/cosine"] = float(functional.cosine_similarity(flat["pedal"], flat["ipfl"], dim=0))

    def norm(self, model: nn.Module) -> None:
        """The gradient's norm of a step."""
        squares = [float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None]
        self.step({"gradient": sum(squares) ** 0.5})

    def epoch(self, task: Any, x: Tensor) -> None:
        """A row; x: training images' embeddings in evaluation mode."""
        parts = getattr(task.model, "parts", 1)
        x = functional.normalize(x.view(len(x), parts, -1).transpose(0, 1), dim=2)
        train = task.data.train
        row = {name: float(np.mean(values)) for name, values in self._steps.items()} | (self._first or {})
        row |= describe(x, train.pids, train.camids)
        if getattr(task, "pedal", None) is not None:
            row |= describe_memory(x, task.memory.bank, task.config.loss.scale)
        labels = getattr(task, "labels", None)
        if labels is not None:
            row |= describe_clusters(labels, train.pids, train.camids)
        self.rows.append({name: round(value, 5) for name, value in row.items()})
        self._steps, self._first = {}, None

    def queries(self, x: Tensor, y: Tensor, data: Any) -> None:
        """To the last row: scores of the queries with each camera's mean taken off."""
        cameras = np.concatenate([data.query.camids, data.gallery.camids])
        z = subtract_camera_mean(torch.cat([x, y]), cameras)
        ids = (data.query.pids, data.gallery.pids, data.query.camids, data.gallery.camids)
        self.rows[-1]["mAP/minus camera means"] = round(rank(z[: len(x)], z[len(x) :], *ids).mean_ap, 5)


def describe(x: Tensor, pids: NDArray[np.int64], cameras: NDArray[np.int64]) -> dict[str, float]:
    """Of unit features [M, N, d], as means over the parts: how far they have collapsed, and what they tell apart.

    `mean cosine` of all pairs, `rank` (participation ratio) of their covariance, `share/camera` and `share/identity`
    of the variance that lies between cameras and between identities, and of each row's 10 nearest those of its own
    identity (`near/identity`; `near/across`: and of another camera; `near/first`: of the nearest alone) and of its own
    camera (`near/camera`); `across/identity`: of the 10 nearest of other cameras those of its own identity.
    """
    same = torch.from_numpy(pids[:, None] == pids)
    beside = torch.from_numpy(cameras[:, None] == cameras)
    parts = []
    for part in x:
        centred = part - part.mean(0)
        total = float(centred.square().sum())
        covariance = centred.T @ centred
        nearest = _nearest(part)
        row = {
            "mean cosine": float(part.mean(0).square().sum()),
            "rank": total**2 / float(covariance.square().sum()),
            "share/camera": _between(centred, cameras) / total,
            "share/identity": _between(centred, pids) / total,
            "near/identity": float(same.gather(1, nearest).float().mean()),
            "near/first": float(same.gather(1, nearest[:, :1]).float().mean()),
            "near/across": float((same & ~beside).gather(1, nearest).float().mean()),
            "near/camera": float(beside.gather(1, nearest).float().mean()),
            "across/identity": float((same & ~beside).gather(1, _nearest(part, beside)).float().mean()),
        }
        parts.append(row)
    result = {name: float(np.mean([row[name] for row in parts])) for name in parts[0]}
    whole = x.transpose(0, 1).flatten(1)
    return result | {"train mAP": rank(whole, whole, pids, pids, cameras, cameras).mean_ap}


def describe_memory(x: Tensor, bank: Tensor, scale: float) -> dict[str, float]:
    """Of features [M, N, d] and their memory: cosine of a row with its own, length of a row, squared distance of the 10
    nearest and of all others, effective number (exp of the entropy) of rows that push, and the 10 nearest's share."""
    values = []
    for part, rows in zip(x, bank, strict=True):
        d = (part.square().sum(1, keepdim=True) + rows.square().sum(1) - 2 * part @ rows.T).clamp(min=0)
        d.fill_diagonal_(torch.inf)
        p = torch.softmax(-scale * d, 1)
        entropy = -(p * p.clamp(min=1e-30).log()).sum(1)
        near = d.topk(min(K, len(d) - 1), largest=False)
        others = d[~torch.eye(len(d), dtype=torch.bool)].mean()
        values.append(
            [
                functional.cosine_similarity(part, rows).mean(),
                rows.norm(dim=1).mean(),
                near.values.mean(),
                others,
                entropy.exp().mean(),
                p.gather(1, near.indices).sum(1).mean(),
            ]
        )
    names = ("own cosine", "length", "near distance", "mean distance", "effective rows", "near share")
    return dict(zip([f"memory/{name}" for name in names], torch.tensor(values).mean(0).tolist(), strict=True))


def describe_clusters(
    labels: NDArray[np.int64], pids: NDArray[np.int64], cameras: NDArray[np.int64]
) -> dict[str, float]:
    """How many clusters and outliers; of pairs in a cluster, those of one identity; of an identity's pairs, those in a
    cluster, and so for its pairs of two cameras."""
    n = len(labels)
    together = (labels[:, None] == labels) & (labels >= 0)[:, None] & ~np.eye(n, dtype=bool)
    same = (pids[:, None] == pids) & ~np.eye(n, dtype=bool)
    across = same & (cameras[:, None] != cameras)
    return {
        "clusters": float(labels.max(initial=-1) + 1),
        "outliers": float((labels < 0).mean()),
        "pairs/precision": float((same & together).sum() / max(1, together.sum())),
        "pairs/recall": float((same & together).sum() / max(1, same.sum())),
        "pairs/recall across cameras": float((across & together).sum() / max(1, across.sum())),
    }


def _nearest(x: Tensor, without: Tensor | None = None) -> Tensor:
    cosine = (x @ x.T).fill_diagonal_(-torch.inf)
    if without is not None:
        cosine = cosine.masked_fill(without, -torch.inf)
    return cosine.topk(min(K, len(x) - 1)).indices


def _between(centred: Tensor, groups: NDArray[np.int64]) -> float:
    """Sum of squares between groups."""
    which = torch.from_numpy(np.unique(groups, return_inverse=True)[1])
    sums = torch.zeros(int(which.max()) + 1, centred.shape[1]).index_add_(0, which, centred)
    return float((sums.square().sum(1) / torch.bincount(which)).sum())
