# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The network of cluster-contrast: a backbone's pooled feature behind a batch norm, at unit length."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from reidfast.models.backbones import Backbone, OSNet
from reidfast.models.over_backbone import OverBackbone
from reidfast.models.paul import PatchBranches
from reidfast.models.registry import register_model
from reidfast.nn import FixedPatches

__all__ = ["ClusterContrast"]

STRIPES = 6


class StripeNeck(nn.Module):
    """Horizontal stripes of a map, each through a linear layer and batch norm of its own: what PatchNet has.

    Args:
        linear: What every stripe starts with.
        norm: The same.
        parts: Stripes.
    """

    def __init__(self, linear: nn.Linear, norm: nn.BatchNorm1d, parts: int) -> None:
        super().__init__()
        self.generator = FixedPatches(parts)
        self.branches = PatchBranches(parts, linear.in_features, linear.out_features)
        self.branches.copy_(linear, norm)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, C, H, W] -> [B, parts * d], every stripe's feature at unit length."""
        x = functional.normalize(self.branches(self.generator(features)), dim=2)
        return x.transpose(0, 1).flatten(1)


@register_model("cluster_contrast")
class ClusterContrast(OverBackbone):
    """Pooled feature, batch norm without a learned shift, L2 normalisation: the same in training and evaluation mode.

    Dai et al., "Cluster Contrast for Unsupervised Person Re-Identification", ACCV 2022, arXiv:2103.11568.

    Args:
        backbone: Any backbone; the paper's is resnet50 with last stride 1 at 256 x 128.
        neck: "new": a batch norm of its own. "backbone": that of OSNet's fully connected layer, whose ReLU is left out.
            "stripes": that layer and norm six times over, on horizontal stripes of the map, as PatchNet starts.
    """

    def __init__(self, backbone: Backbone, *, neck: Literal["new", "backbone", "stripes"] = "new") -> None:
        super().__init__()
        if neck not in ("new", "backbone", "stripes"):
            raise ValueError(f"cluster_contrast: expected neck new, backbone or stripes, got {neck!r}")
        self.backbone = backbone
        self.feature_size = backbone.feature_size
        self.neck: nn.Module = nn.Identity()
        if neck == "new":
            self.neck = nn.BatchNorm1d(self.feature_size)
            self.neck.bias.requires_grad_(False)
        elif not isinstance(backbone, OSNet) or backbone.fc is None:
            raise ValueError(
                f"cluster_contrast: expected an OSNet with its fully connected layer for neck={neck!r}, "
                f"got {type(backbone).__name__}; use neck='new'"
            )
        elif neck == "backbone":
            backbone.fc = nn.Sequential(*list(backbone.fc)[:2])
        else:
            linear, norm = backbone.fc[0], backbone.fc[1]
            assert isinstance(linear, nn.Linear) and isinstance(norm, nn.BatchNorm1d)
            self.neck = StripeNeck(linear, norm, STRIPES)
            self.feature_size = STRIPES * linear.out_features
            backbone.fc, backbone.feature_size = None, backbone.out_channels

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, feature_size], rows of unit length."""
        x = self.backbone.forward_map(images) if isinstance(self.neck, StripeNeck) else self.backbone(images)
        return functional.normalize(self.neck(x), dim=1)
