# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The network of cluster-contrast: a backbone's pooled feature behind a batch norm, at unit length."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from reidfast.models.backbones import Backbone, OSNet

__all__ = ["ClusterContrast"]


class ClusterContrast(nn.Module):
    """Pooled feature, batch norm without a learned shift, L2 normalisation: the same in training and evaluation mode.

    Dai et al., "Cluster Contrast for Unsupervised Person Re-Identification", ACCV 2022, arXiv:2103.11568.

    Args:
        backbone: Any backbone; the paper's is resnet50 with last stride 1 at 256 x 128.
        neck: "new": a batch norm of its own. "backbone": that of OSNet's fully connected layer, whose ReLU is left out.
    """

    def __init__(self, backbone: Backbone, *, neck: Literal["new", "backbone"] = "new") -> None:
        super().__init__()
        if neck not in ("new", "backbone"):
            raise ValueError(f"cluster_contrast: expected neck new or backbone, got {neck!r}")
        self.backbone = backbone
        self.feature_size = backbone.feature_size
        self.neck: nn.Module = nn.Identity()
        if neck == "new":
            self.neck = nn.BatchNorm1d(self.feature_size)
            self.neck.bias.requires_grad_(False)
        elif isinstance(backbone, OSNet) and backbone.fc is not None:
            backbone.fc = nn.Sequential(*list(backbone.fc)[:2])
        else:
            raise ValueError(
                "cluster_contrast: expected an OSNet with its fully connected layer for neck='backbone', "
                f"got {type(backbone).__name__}; use neck='new'"
            )

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters that are not the backbone's."""
        return list(self.neck.parameters())

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, feature_size], rows of unit length."""
        return functional.normalize(self.neck(self.backbone(images)), dim=1)
