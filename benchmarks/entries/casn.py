# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What CASN's training costs over its baseline, and what it saves to write the head's derivative out.

`casn_maps`: trainable identity attention of a given feature map, and the gradient of both orders. `casn_step`: whole
training steps. All ways but the plain baseline give the same maps and gradients. Peak memory of the steps:
`python -m benchmarks.entries.casn`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.registry import Step, register
from reidfast.losses import CASNLoss
from reidfast.models import CASN, Backbone, create_model

IDS = 751  # Market-1501


class Given(Backbone):
    """Stands for a backbone whose map is the input of the step."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = self.feature_size = channels

    def forward_map(self, images: Tensor) -> Tensor:
        return images


class EagerMap(CASN):
    """The derivative by autograd with its graph, the map as a product and a sum: what most Grad-CAM code writes."""

    def _attention(self, cells: Tensor, direction: Tensor) -> Tensor:
        score = (self.frozen_features(cells) * direction).sum()
        (slope,) = torch.autograd.grad(score, cells, create_graph=True)
        return (slope.mean((2, 3), keepdim=True) * cells).sum(1).relu()


class WholeBackward(CASN):
    """As `EagerMap`, by `score.backward(create_graph=True)`: the pass goes on through the whole network."""

    def _attention(self, cells: Tensor, direction: Tensor) -> Tensor:
        score = (self.frozen_features(cells) * direction).sum()
        wanted = [cells, *(p for p in self.backbone.parameters() if p.requires_grad)]
        slope = torch.autograd.grad(score, wanted, create_graph=True, allow_unused=True)[0]
        return (slope.mean((2, 3), keepdim=True) * cells).sum(1).relu()


def _models(make: Any, kinds: dict[str, tuple[type[CASN], bool]], device: str, **options: Any) -> dict[str, CASN]:
    models: dict[str, CASN] = {}
    for name, (kind, closed) in kinds.items():
        torch.manual_seed(0)
        models[name] = kind(make(), IDS, closed_form=closed, **options).to(device)
    return models


def map_providers(shape: dict[str, Any], device: str) -> dict[str, Step]:
    kinds = {"reidfast": (CASN, True), "autograd with graph": (CASN, False), "eager Grad-CAM": (EagerMap, False)}
    models = _models(lambda: Given(shape["channels"]), kinds, device, base=shape["base"])
    cells = torch.randn(shape["batch"], shape["channels"], shape["height"], shape["width"], device=device)
    cells = cells.relu_().requires_grad_()
    labels = torch.arange(shape["batch"], device=device) % IDS
    grad = torch.randn(shape["batch"], shape["height"], shape["width"], device=device)

    def step(model: CASN) -> Step:
        leaves = [cells, *(p for p in model.base.parameters() if p.requires_grad)]
        return lambda: torch.autograd.grad(model.identity_attention(cells, labels), leaves, grad, allow_unused=True)

    return {name: step(model) for name, model in models.items()}


def step_providers(shape: dict[str, Any], device: str) -> dict[str, Step]:
    kinds = {
        "reidfast": (CASN, True),
        "autograd with graph": (CASN, False),
        "backward through the whole network": (WholeBackward, False),
        "baseline, cross-entropy alone": (CASN, True),
    }
    options = {"base": shape["base"], "base_options": shape["base_options"]}
    models = _models(lambda: create_model(shape["backbone"]), kinds, device, **options)
    n = shape["batch"]
    images = torch.randn(n, 3, shape["height"], shape["width"], device=device)
    labels = torch.arange(n, device=device) // 4
    places = torch.arange(n, device=device)
    first, second = places, torch.cat([places[: n // 2] ^ 1, (places[n // 2 :] + 5) % n])  # half positive

    def step(model: CASN, loss: CASNLoss) -> Step:
        leaves = [p for p in model.parameters() if p.requires_grad]
        return lambda: torch.autograd.grad(
            loss(model, images, labels, first, second, n // 2).total, leaves, allow_unused=True
        )

    plain = CASNLoss(attention=0.0, siamese=0.0)
    return {name: step(m, plain if name.startswith("baseline") else CASNLoss()) for name, m in models.items()}


def _cells(s: dict[str, Any]) -> float:
    return float(s["batch"] * s["channels"] * s["height"] * s["width"])


MAPS = {
    "pcb": {"base": "pcb", "batch": 32, "channels": 2048, "height": 24, "width": 8},
    "ide": {"base": "ide", "batch": 32, "channels": 2048, "height": 16, "width": 8},
}
register(
    name="casn_maps",
    shapes=MAPS,
    providers=map_providers,
    bytes=lambda s: 4 * 3 * _cells(s),
    flops=lambda s: 5 * _cells(s),
    targets={"pcb": {"eager Grad-CAM": 2.0}},
    tests="tests/models/test_casn_model.py",
    quick=("ide",),
)
_SMALL = {"backbone": "osnet_x0_25", "batch": 32, "height": 128, "width": 64}
STEPS = {
    "osnet_x0_25 pcb": {**_SMALL, "base": "pcb", "base_options": {"parts": 4, "reduced": 128}},
    "osnet_x0_25 ide": {**_SMALL, "base": "ide", "base_options": {"hidden": 256}},
    "resnet50 pcb": {"backbone": "resnet50", "batch": 32, "height": 384, "width": 128, "base": "pcb",
                     "base_options": {}},
}  # fmt: skip
register(
    name="casn_step",
    shapes=STEPS,
    providers=step_providers,
    bytes=lambda s: 0.0,
    flops=lambda s: 0.0,
    mode="training step",
    tests="tests/losses/test_casn_losses.py",
    quick=("osnet_x0_25 ide",),
)


def memory(names: list[str]) -> None:
    """Prints the peak memory of every provider."""
    from reidfast.testing import peak_memory

    for name in names:
        shape, function = (MAPS[name], "map_providers") if name in MAPS else (STEPS[name], "step_providers")
        small = {**shape, "batch": 2, "base_options": {}}
        for provider in globals()[function](small, "cpu"):
            setup = f"from benchmarks.entries.casn import {function}\nstep = {function}({shape!r}, 'cpu')[{provider!r}]"
            print(f"{name:<18} {provider:<36} {peak_memory(setup, 'step()') / 2**20:8.0f} MiB", flush=True)


if __name__ == "__main__":
    import sys

    memory(sys.argv[1:] or [*MAPS, *(name for name in STEPS if name.startswith("osnet"))])
