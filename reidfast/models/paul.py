# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""PatchNet, the network of PAUL: patches of a feature map, a branch for each, over any backbone."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from reidfast.models.backbones import Backbone, OSNet
from reidfast.models.over_backbone import OverBackbone
from reidfast.models.registry import register_model
from reidfast.nn import FixedPatches, PatchGenerator

__all__ = ["PatchBranches", "PatchFeatures", "PatchNet"]


class PatchFeatures(NamedTuple):
    """What PatchNet gives in training mode.

    Attributes:
        features: A feature of each patch, [M, B, d]: before L2 normalisation with classifiers, of unit length without.
        logits: Identity logits of each patch, [M, B, num_classes]; None without classifiers.
        embeddings: The patches' embeddings side by side, [B, M * embedding], not normalised; None without classifiers.
    """

    features: Tensor
    logits: Tensor | None
    embeddings: Tensor | None


class PatchBranches(nn.Module):
    """M linear layers with batch norm, one for each patch, as one product and one norm.

        x_m = BN_m(V_m p_m + b_m)

    Args:
        parts: M.
        channels: C of the pooled patches.
        dim: d.
        relu: A ReLU behind the norm, as in the supervised pre-training.
    """

    def __init__(self, parts: int, channels: int, dim: int, *, relu: bool = False) -> None:
        super().__init__()
        self.parts, self.dim, self.relu = parts, dim, relu
        self.weight = nn.Parameter(torch.empty(parts, dim, channels))
        self.bias = nn.Parameter(torch.zeros(parts, dim))
        self.norm = nn.BatchNorm1d(parts * dim)
        nn.init.normal_(self.weight, std=(2 / dim) ** 0.5)  # Kaiming, fan-out

    @torch.no_grad()
    def copy_(self, linear: nn.Linear, norm: nn.BatchNorm1d) -> None:
        """Make every branch the given linear layer and batch norm."""
        if linear.weight.shape != self.weight.shape[1:]:
            raise ValueError(
                f"PatchBranches: expected a linear layer of shape {tuple(self.weight.shape[1:])}, "
                f"got {tuple(linear.weight.shape)}; set dim={len(linear.weight)}"
            )
        self.weight.copy_(linear.weight.expand_as(self.weight))
        self.bias.copy_(linear.bias.expand_as(self.bias) if linear.bias is not None else torch.zeros_like(self.bias))
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(self.norm, name).copy_(getattr(norm, name).repeat(self.parts))
        self.norm.eps = norm.eps

    def forward(self, patches: Tensor) -> Tensor:
        """Pooled patches [B, M, C] -> [M, B, d]."""
        x = torch.baddbmm(self.bias.unsqueeze(1), patches.transpose(0, 1), self.weight.mT)  # [M, B, d]
        x = self.norm(x.transpose(0, 1).reshape(-1, self.parts * self.dim))
        x = x.view(-1, self.parts, self.dim).transpose(0, 1)
        return x.relu() if self.relu else x

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"parts={self.parts}, channels={self.weight.shape[2]}, dim={self.dim}, relu={self.relu}"


@register_model("paul")
class PatchNet(OverBackbone):
    """Backbone, M patches of its map, a branch each; the embedding is the M unit features side by side.

    In training mode ``PatchFeatures``, in evaluation mode the embedding [B, M * d], of norm sqrt(M).

    Yang et al., "Patch-based Discriminative Feature Learning for Unsupervised Person Re-identification", CVPR 2019; as
    in the authors' code: patches of the map's own size, averaged; branches of 1x1 convolution and batch norm.

    Args:
        backbone: Any backbone; the paper's is resnet50 with last stride 1 at 384 x 128.
        parts: M.
        dim: d, of a patch's feature.
        patches: "learned" by the patch generation network, which starts as stripes; "stripes", M horizontal ones;
            "random", M boxes drawn once (``FixedPatches``).
        branches: "new" (Kaiming); "backbone": each takes over the linear layer and batch norm that OSNet has behind its
            pooled map (its ReLU is left out), so that the network knows people before any training.
        num_classes: Identities of the supervised pre-training: classifiers, and a ReLU in the branches. None: without.
        embedding: Width of the linear layer of each patch that the pre-training's triplet loss sees, and whose frozen
            weights make PAUL's image embedding; None: without (not beside num_classes).
        hidden: Width of the patch generation network's hidden linear layer.
        align_corners: Convention of the sampling grid; the authors' PyTorch 0.4.1 behaved as True.
        seed: Seed of random patches.

    Example:
        >>> net = create_model("paul", backbone="osnet_x0_25", dim=64).eval()
        >>> net(torch.randn(2, 3, 128, 64)).shape
        torch.Size([2, 384])
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        parts: int = 6,
        dim: int = 256,
        patches: Literal["learned", "stripes", "random"] = "learned",
        branches: Literal["new", "backbone"] = "new",
        num_classes: int | None = None,
        embedding: int | None = None,
        hidden: int = 512,
        align_corners: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if patches not in ("learned", "stripes", "random") or branches not in ("new", "backbone"):
            raise ValueError(
                "paul: expected patches learned, stripes or random and branches new or backbone, "
                f"got {patches!r} and {branches!r}"
            )
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"paul: expected num_classes of at least 1, or None, got {num_classes}")
        self.backbone = backbone
        self.parts, self.dim = parts, dim
        self.feature_size = parts * dim
        channels = backbone.out_channels
        self.generator: PatchGenerator | FixedPatches
        if patches == "learned":
            self.generator = PatchGenerator(channels, parts, hidden=hidden, align_corners=align_corners)
        else:
            self.generator = FixedPatches(parts, kind=patches, align_corners=align_corners, seed=seed)
        self.branches = PatchBranches(parts, channels, dim, relu=num_classes is not None)
        if branches == "backbone":
            self._take_over()
        if isinstance(backbone, OSNet):  # what lies behind the pooled map is not used
            backbone.fc, backbone.feature_size = None, backbone.out_channels
        self.embed_weight: nn.Parameter | None = None  # (M, width, d)
        self.embed_bias: nn.Parameter | None = None
        if embedding is None and num_classes is not None:
            embedding = 128
        if embedding is not None:
            self.embed_weight = nn.Parameter(torch.empty(parts, embedding, dim))
            self.embed_bias = nn.Parameter(torch.zeros(parts, embedding))
            nn.init.normal_(self.embed_weight, std=(2 / embedding) ** 0.5)
        self.class_weight: nn.Parameter | None = None
        self.class_bias: nn.Parameter | None = None
        if num_classes is not None:
            self.class_weight = nn.Parameter(torch.empty(parts, num_classes, dim))
            self.class_bias = nn.Parameter(torch.zeros(parts, num_classes))
            nn.init.normal_(self.class_weight, std=0.001)

    def _take_over(self) -> None:
        layers = self.backbone.fc if isinstance(self.backbone, OSNet) else None
        if layers is None:
            raise ValueError(
                "paul: expected an OSNet with its fully connected layer for branches='backbone', "
                f"got {type(self.backbone).__name__}; use branches='new'"
            )
        linear, norm = layers[0], layers[1]
        assert isinstance(linear, nn.Linear) and isinstance(norm, nn.BatchNorm1d)
        self.branches.copy_(linear, norm)

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters of neither the backbone nor the patch generation network."""
        inside = {id(p) for module in (self.backbone, self.generator) for p in module.parameters()}
        return [p for p in self.parameters() if id(p) not in inside]

    def patch_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features of the patches before L2 normalisation, [M, B, d]."""
        return self.branches(self.generator(self.backbone.forward_map(images)))

    def transforms(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> where their patches are, theta [B, M, 2, 3]; see ``reidfast.ops.sample_patches``."""
        return self.generator.transforms(self.backbone.forward_map(images))

    def project(self, features: Tensor) -> Tensor:
        """Cosines of the patches' features and the embedding layers' rows: PAUL's image embedding.

            e = concat over m of  x_m . V_m^T,    rows of V_m at unit length

        Args:
            features: Unit features, [M, B, d].

        Returns:
            [B, M * embedding]. No gradient for the layers: they are frozen after the pre-training.
        """
        if self.embed_weight is None:
            raise ValueError("paul: expected a network with embedding layers, got embedding=None; use ipfl='concat'")
        rows = functional.normalize(self.embed_weight.detach(), dim=2)
        return torch.bmm(features, rows.mT).transpose(0, 1).flatten(1)

    def forward(self, images: Tensor) -> PatchFeatures | Tensor:
        """Images [B, 3, H, W]."""
        x = self.patch_features(images)
        if not self.training:
            return functional.normalize(x, dim=2).transpose(0, 1).flatten(1)
        if self.class_weight is None or self.class_bias is None or self.embed_weight is None or self.embed_bias is None:
            return PatchFeatures(functional.normalize(x, dim=2), None, None)
        logits = torch.baddbmm(self.class_bias.unsqueeze(1), x, self.class_weight.mT)
        embeddings = torch.baddbmm(self.embed_bias.unsqueeze(1), x, self.embed_weight.mT)
        return PatchFeatures(x, logits, embeddings.transpose(0, 1).flatten(1))
