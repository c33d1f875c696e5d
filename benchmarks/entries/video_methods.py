# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A training step of DRSTA and of RRU + STIM, from feature maps to gradients, losses included, against the same step as
the published code writes it: attention as an expanded product, the recurrence step by step over concatenated maps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.harness.registry import Step, register
from reidfast.losses import DiversityLoss, OIMLoss, RRUSTIMLoss
from reidfast.models import Backbone, create_model
from reidfast.models.drsta import DRSTA
from reidfast.models.rru_stim import RRUSTIM
from reidfast.nn.rru import reference_rru

IDS = 625  # MARS


class Given(Backbone):
    """Stands for a backbone whose maps are the input of the step."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = self.feature_size = channels

    def forward_map(self, images: Tensor) -> Tensor:
        return images


# --- DRSTA as multiple_spatial_attention.py, trainers.py and open-reid's oim.py have it


def eager_drsta(model: DRSTA, maps: Tensor) -> tuple[Tensor, Tensor]:
    """The embedding and the attention: the map expanded to the K attentions and multiplied, then averaged."""
    batch, frames = maps.shape[:2]
    f = maps.flatten(0, 1)
    attend = model.attend
    assert attend is not None
    attention = attend.logits(attend.trunk(f)).flatten(2).softmax(-1).view(len(f), model.k, 1, *f.shape[2:])
    product = f.unsqueeze(1).expand(-1, model.k, -1, -1, -1) * attention.expand(-1, -1, f.shape[1], -1, -1)
    pooled = functional.avg_pool2d(product.flatten(0, 1), tuple(f.shape[2:])).view(batch, frames, model.k, -1)
    pooled = pooled * (f.shape[2] * f.shape[3])
    x = model.enhance(pooled)
    x = x / x.norm(dim=-1, keepdim=True)
    weights = (x * model.time.weight).sum(-1).softmax(1)
    joined = (weights.unsqueeze(-1) * x).sum(1).flatten(1)
    out = model.final(joined) if model.final is not None else joined
    return out / out.norm(dim=1, keepdim=True), attention.flatten(2)


class EagerOIM(nn.Module):
    """The table as one matrix product, updated sample by sample."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(classes, dim))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        loss = functional.cross_entropy(30.0 * x @ self.table.clone().t(), labels)
        with torch.no_grad():
            for row, y in zip(x.detach(), labels.tolist(), strict=True):
                self.table[y] = 0.5 * self.table[y] + 0.5 * row
                self.table[y] /= self.table[y].norm()
        return loss


def drsta_providers(shape: dict[str, Any], device: str) -> dict[str, Step]:
    model, images = _model(shape, "drsta", device)
    labels = torch.arange(shape["clips"], device=device) // 2
    oim, penalty, eager_oim = (m.to(device) for m in (OIMLoss(IDS, 128), DiversityLoss(), EagerOIM(IDS, 128)))

    def ours(model: DRSTA) -> Tensor:
        out = model(images) if images.shape[2] == 3 else model.forward_maps(images)
        return oim(out.embedding, labels) + penalty(out.overlap)

    def eager(model: DRSTA) -> Tensor:
        maps = model.maps(images) if images.shape[2] == 3 else images
        embedding, attention = eager_drsta(model, maps)
        root = attention.sqrt()
        gram = root @ root.transpose(1, 2) - torch.eye(model.k, device=root.device).expand(len(root), -1, -1)
        return eager_oim(embedding, labels) + (gram.pow(2).sum() + 1e-5).sqrt()

    return _steps(model, ours, eager, images)


# --- RRU + STIM as person-reid-lib's architecture.py and triplet.py have it


def eager_triplet(x: Tensor, labels: Tensor, margin: float = 0.4) -> Tensor:
    """Batch-hard over the matrix of distances, masks filled in by multiplication."""
    square = x.pow(2).sum(1, keepdim=True)
    distance = (square + square.t() - 2 * x @ x.t()).clamp(min=1e-12).sqrt()
    same = (labels.unsqueeze(1) == labels.unsqueeze(0)).float()
    hardest = (distance * same).max(1)[0]
    nearest = (distance + distance.max() * same).min(1)[0]
    return (hardest - nearest + margin).clamp(min=0).mean()


def rru_stim_providers(shape: dict[str, Any], device: str) -> dict[str, Step]:
    model, images = _model(shape, "rru_stim", device)
    labels = torch.arange(shape["clips"], device=device) // 2
    loss = RRUSTIMLoss()

    def ours(model: RRUSTIM) -> Tensor:
        return loss(*(model(images) if images.shape[2] == 3 else model.forward_maps(images)), labels).total

    def eager(model: RRUSTIM) -> Tensor:
        maps = model.maps(images) if images.shape[2] == 3 else images
        rru, stim = model.rru, model.head
        assert rru is not None
        refined = reference_rru(rru, maps).transpose(1, 2).contiguous()  # (B, C, T, H, W)
        parts = refined.mean(4).mean(2)
        y = functional.relu(stim.reduce_norm(stim.reduce(refined)))
        video = functional.relu(stim.mix_norm(stim.mix(y))).mean(2).mean((2, 3))
        total = functional.cross_entropy(model.classifier(video), labels) + eager_triplet(video, labels)
        stripes = sum(eager_triplet(parts[:, :, p], labels) for p in range(parts.shape[2]))
        return total + stripes / parts.shape[2]

    return _steps(model, ours, eager, images)


def _model(shape: dict[str, Any], method: str, device: str) -> tuple[Any, Tensor]:
    """The model, and its input: maps, or the images of clips where the shape names a backbone."""
    clips, frames = shape["clips"], shape["frames"]
    if "backbone" in shape:
        backbone = create_model(shape["backbone"])
        size, grid = (3, 128, 64), (8, 4)
    else:
        backbone = Given(shape["channels"])
        size, grid = (shape["channels"], shape["height"], shape["width"]), (shape["height"], shape["width"])
    model = DRSTA(backbone) if method == "drsta" else RRUSTIM(backbone, grid, IDS)
    x = torch.randn(clips, frames, *size, device=device)
    return model.to(device), x if "backbone" in shape else x.relu_().requires_grad_()


def _steps(model: Any, ours: Callable[..., Tensor], eager: Callable[..., Tensor], images: Tensor) -> dict[str, Step]:
    def step(model: Any, function: Callable[..., Tensor]) -> Step:
        leaves = [p for p in model.parameters() if p.requires_grad] + ([images] if images.requires_grad else [])
        return lambda: torch.autograd.grad(function(model), leaves, allow_unused=True)

    return {"reidfast": step(model, ours), "eager (published code)": step(copy.deepcopy(model), eager)}


def _map_bytes(s: dict[str, Any]) -> float:
    return 4.0 * s["clips"] * s["frames"] * s["channels"] * s["height"] * s["width"] if "channels" in s else 0.0


def _rru_flops(s: dict[str, Any]) -> float:
    if "channels" not in s:
        return 0.0
    cells = s["clips"] * s["frames"] * s["height"] * s["width"]
    return 3 * 2.0 * cells * (3 * 256 * s["channels"] + 27 * 256 * 256)  # forward, and two products backward


SMALL = {"clips": 8, "frames": 6, "backbone": "osnet_x0_25"}

register(
    name="drsta_step",
    shapes={
        "published head": {"clips": 32, "frames": 6, "channels": 2048, "height": 8, "width": 4},
        "osnet_x0_25": SMALL,
    },
    providers=drsta_providers,
    bytes=lambda s: 3 * _map_bytes(s),
    flops=lambda s: 3 * 2.0 * (64 + 2 * 6) * _map_bytes(s) / 4,
    mode="training step",
    targets={"published head": {"eager (published code)": 3.0}},
    tests="tests/models/test_video_models.py",
    quick=("osnet_x0_25",),
)
register(
    name="rru_stim_step",
    shapes={
        "published head": {"clips": 20, "frames": 8, "channels": 2048, "height": 8, "width": 8},
        "osnet_x0_25": SMALL,
    },
    providers=rru_stim_providers,
    bytes=lambda s: 6 * _map_bytes(s),
    flops=_rru_flops,
    mode="training step",
    targets={"published head": {"eager (published code)": 1.2}},
    tests="tests/models/test_video_models.py",
    quick=("osnet_x0_25",),
)
