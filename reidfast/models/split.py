# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Cutting a backbone in two: a shallow part for whole images, a deep one for regions of its map."""

from __future__ import annotations

import torch
from torch import nn

from .backbones import Backbone, MobileNetV2, OSNet, ResNet

__all__ = ["backbone_units", "default_cut", "split_backbone"]


def backbone_units(backbone: Backbone) -> list[tuple[str, nn.Module]]:
    """The backbone as a chain of named modules; what follows the last is `backbone.pool`."""
    if isinstance(backbone, ResNet):
        stem = [(n, getattr(backbone, n)) for n in ("conv1", "bn1", "relu", "maxpool")]
        stages = [(f"layer{k}.{i}", b) for k in range(1, 5) for i, b in enumerate(getattr(backbone, f"layer{k}"))]
        return stem + stages
    if isinstance(backbone, OSNet):
        stages = [(f"conv{k}.{i}", b) for k in (2, 3, 4) for i, b in enumerate(getattr(backbone, f"conv{k}"))]
        return [("conv1", backbone.conv1), ("maxpool", nn.MaxPool2d(3, 2, 1)), *stages, ("conv5", backbone.conv5)]
    if isinstance(backbone, MobileNetV2):
        return [(f"features.{i}", layer) for i, layer in enumerate(backbone.features)]
    raise ValueError(
        f"backbone_units: expected a ResNet, an OSNet or a MobileNetV2, got {type(backbone).__name__}, "
        "which is not a chain of modules"
    )


def default_cut(backbone: Backbone) -> str:
    """The last module of the shallow part, at stride 16.

    ResNet: the third block of layer3 (where the person-search network of Xiao et al., CVPR 2017 cuts). OSNet: the end
    of conv3. MobileNetV2: the end of the stage of 96 channels.
    """
    if isinstance(backbone, ResNet):
        return f"layer3.{min(2, len(backbone.layer3) - 1)}"
    return "conv3.2" if isinstance(backbone, OSNet) else "features.13"


def split_backbone(
    backbone: Backbone, cut: str | None = None
) -> tuple[tuple[nn.Module, ...], tuple[nn.Module, ...], int, int]:
    """(shallow modules, deep modules, channels between them, stride there).

    Args:
        backbone: A chain of modules.
        cut: Name of the last shallow module; None: `default_cut`.
    """
    units = backbone_units(backbone)
    names = [name for name, _ in units]
    cut = default_cut(backbone) if cut is None else cut
    if cut not in names[:-1]:
        raise ValueError(f"split_backbone: expected cut to be one of {', '.join(names[:-1])}, got {cut!r}")
    at = names.index(cut) + 1
    shallow, deep = tuple(m for _, m in units[:at]), tuple(m for _, m in units[at:])
    modes = [(m, m.training) for unit in shallow for m in unit.modules()]
    parameter = next(backbone.parameters())
    with torch.no_grad():
        x = torch.zeros(1, 3, 64, 64, device=parameter.device, dtype=parameter.dtype)
        for module in shallow:
            x = module.eval()(x)
    for module, mode in modes:
        module.training = mode
    return shallow, deep, x.shape[1], 64 // x.shape[2]
