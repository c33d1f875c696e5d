# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The baselines that every method is compared with: IDE, the strong baseline (BNNeck) and PCB, over any backbone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from reidfast.models.backbones import Backbone
from reidfast.models.over_backbone import OverBackbone, need_classes
from reidfast.models.registry import register_model

__all__ = ["IDE", "PCB", "Baseline", "BaselineOutput", "StrongBaseline"]


class BaselineOutput(NamedTuple):
    """What a baseline gives in training mode.

    Attributes:
        features: What metric losses see, [B, D].
        logits: Identity logits, [B, P, num_classes]: P classifiers whose cross-entropies are summed (1 but for PCB).
    """

    features: Tensor
    logits: Tensor


class Baseline(OverBackbone):
    """A backbone and a head; in training mode ``BaselineOutput``, in evaluation mode the embedding [B, D]."""

    @classmethod
    def create(cls, *, num_classes: int | None = None, **options: Any) -> Baseline:
        """The baseline over a backbone that is made from its name."""
        return super().create(num_classes=need_classes(num_classes), **options)


@register_model("ide")
class IDE(Baseline):
    """Identity classification: pooled feature, FC + BN + ReLU (the embedding), dropout, classifier.

    Zheng, Yang, Hauptmann, "Person Re-identification: Past, Present and Future", arXiv:1610.02984; the hidden layer's
    sizes are ours.

    Args:
        backbone: Any backbone.
        num_classes: Training identities.
        hidden: Width of the hidden layer.
        dropout: Before the classifier.
    """

    classifier_keys = ("classifier.weight",)

    def __init__(self, backbone: Backbone, num_classes: int, *, hidden: int = 1024, dropout: float = 0.5) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_size = hidden
        self.embed = nn.Sequential(
            nn.Linear(backbone.feature_size, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(dropout)
        )
        self.classifier = nn.Linear(hidden, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> BaselineOutput | Tensor:
        """Images [B, 3, H, W]."""
        features = self.embed(self.backbone(images))
        if not self.training:
            return features
        return BaselineOutput(features, self.classifier(features).unsqueeze(1))


@register_model("strong_baseline")
class StrongBaseline(Baseline):
    """Pooled feature f_t for the metric losses, BNNeck f_i = BN(f_t) with no bias for the classifier and at test time.

    Luo, Gu, Liao, Lai, Jiang, "Bag of Tricks and A Strong Baseline for Deep Person Re-identification", CVPRW 2019.

    Args:
        backbone: Any backbone; the paper's is resnet50 with last stride 1.
        num_classes: Training identities.
    """

    classifier_keys = ("classifier.weight",)

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_size = backbone.feature_size
        self.neck = nn.BatchNorm1d(self.feature_size)
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(self.feature_size, num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, images: Tensor) -> BaselineOutput | Tensor:
        """Images [B, 3, H, W]."""
        features = self.backbone(images)
        embedding = self.neck(features)
        if not self.training:
            return embedding
        return BaselineOutput(features, self.classifier(embedding).unsqueeze(1))


@register_model("pcb")
class PCB(Baseline):
    """Horizontal stripes with a classifier each; the embedding is the stripes' pooled vectors at unit length.

    Sun, Zheng, Yang, Tian, Wang, "Beyond Part Models: Person Retrieval with Refined Part Pooling", ECCV 2018, without
    refinement.

    Args:
        backbone: Any backbone with a map of at least ``parts`` rows; the paper's is resnet50 with last stride 1 at 384
            x 128.
        num_classes: Training identities.
        parts: Stripes.
        reduced: Channels after the shared 1x1 convolution.
        dropout: On the pooled stripes.
    """

    classifier_keys = ("classifiers.0.weight",)

    def __init__(
        self, backbone: Backbone, num_classes: int, *, parts: int = 6, reduced: int = 256, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.parts = parts
        self.feature_size = parts * backbone.out_channels
        self.dropout = nn.Dropout(dropout)
        self.reduce = nn.Sequential(
            nn.Conv2d(backbone.out_channels, reduced, 1, bias=False), nn.BatchNorm2d(reduced), nn.ReLU()
        )
        classifiers = [nn.Linear(reduced, num_classes) for _ in range(parts)]
        for classifier in classifiers:
            nn.init.normal_(classifier.weight, std=0.001)
            nn.init.zeros_(classifier.bias)
        self.classifiers = nn.ModuleList(classifiers)

    def forward(self, images: Tensor) -> BaselineOutput | Tensor:
        """Images [B, 3, H, W]."""
        cells = self.backbone.forward_map(images)
        if cells.shape[2] < self.parts:
            raise ValueError(
                f"PCB: expected a map of at least {self.parts} rows, got {cells.shape[2]}; use taller images"
            )
        stripes = functional.adaptive_avg_pool2d(cells, (self.parts, 1))  # [B, C, P, 1]
        if not self.training:
            return functional.normalize(stripes.squeeze(3), dim=1).transpose(1, 2).flatten(1)
        reduced = self.reduce(self.dropout(stripes)).squeeze(3)  # [B, reduced, P]
        logits = torch.stack([c(reduced[:, :, p]) for p, c in enumerate(self.classifiers)], 1)
        return BaselineOutput(reduced.flatten(1), logits)
