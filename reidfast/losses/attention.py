# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Soft erasing of what a network attends to, and the loss that wants the rest to be worth nothing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from reidfast.losses.consistency import min_max
from reidfast.ops._checks import check_choice

NORMALISATIONS = ("image", "batch")
SCORES = ("probability", "sigmoid")


class Erased(NamedTuple):
    """What `SoftErase` gives.

    Attributes:
        images: With the attended area faded out, (B, C, H, W).
        constant: Images whose map does not vary, (B,) bool: its normalised map is all zeros, nothing is attended.
    """

    images: Tensor
    constant: Tensor


class SoftErase(nn.Module):
    """Fades the attended area of images out, differentiably.

        M^ = (M - min) / (max - min)                                         zeros where the map is constant
        T  = sigmoid(alpha (upsampled M^ - beta)),   I' = I o (1 - T)

    Bilinear upsampling, align_corners False. Images are normalised, so what fades becomes the mean colour. The soft
    mask is that of Li, Wu, Peng, Ernst, Fu, "Tell Me Where to Look: Guided Attention Inference Network", CVPR 2018.

    Args:
        alpha: Steepness; implementations of GAIN use 10 and 100.
        beta: The normalised attention at which half is erased; they use 0.5 and 0.25.
        normalisation: Smallest and largest value "image" by image, or over the "batch" as those implementations do.
    """

    def __init__(self, *, alpha: float = 10.0, beta: float = 0.5, normalisation: str = "image") -> None:
        super().__init__()
        check_choice("SoftErase", "normalisation", normalisation, NORMALISATIONS)
        if alpha <= 0:
            raise ValueError(f"SoftErase: expected alpha > 0, got {alpha}")
        self.alpha, self.beta, self.normalisation = alpha, beta, normalisation

    def normalise(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, h, w) -> in [0, 1], (B, h, w), and which are constant, (B,)."""
        if self.normalisation == "batch":
            scaled, constant = min_max(maps.reshape(1, -1) if maps.numel() else maps.flatten(1))
            return scaled.view_as(maps), constant.expand(len(maps))
        scaled, constant = min_max(maps.flatten(1))
        return scaled.view_as(maps), constant

    def forward(self, images: Tensor, maps: Tensor) -> Erased:
        """Images (B, C, H, W) and their maps (B, h, w)."""
        if images.dim() != 4 or maps.dim() != 3 or len(images) != len(maps):
            raise ValueError(
                f"SoftErase: expected images (B, C, H, W) and maps (B, h, w), "
                f"got {tuple(images.shape)} and {tuple(maps.shape)}"
            )
        scaled, constant = self.normalise(maps)
        large = functional.interpolate(scaled.unsqueeze(1), images.shape[2:], mode="bilinear", align_corners=False)
        return Erased(images * torch.sigmoid(self.alpha * (self.beta - large)), constant)

    def extra_repr(self) -> str:
        """What the printed module adds."""
        return f"alpha={self.alpha}, beta={self.beta}, normalisation={self.normalisation!r}"


class AttentionLoss(nn.Module):
    """How well the identity is recognised although the attended area was erased.

    Minimised, it makes attention cover all of the person.

        probability:  L = (1/BP) sum_i sum_p softmax(z_ip)_{y_i}
        sigmoid:      L = (1/BP) sum_i sum_p sigmoid(z_{ip,y_i})

    Zheng, Karanam, Wu, Radke, "Re-Identification with Consistent Attentive Siamese Networks", CVPR 2019.

    Args:
        score: "probability", or "sigmoid" of the logit as implementations of GAIN have it.
    """

    def __init__(self, score: str = "probability") -> None:
        super().__init__()
        check_choice("AttentionLoss", "score", score, SCORES)
        self.score = score

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits of the erased images (B, N) or, of P classifiers, (B, P, N); labels (B,). An empty batch gives 0."""
        if logits.dim() == 2:
            logits = logits.unsqueeze(1)
        if logits.dim() != 3 or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"AttentionLoss: expected logits (B, N) or (B, P, N) and labels (B,), "
                f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores = logits.softmax(2) if self.score == "probability" else logits.sigmoid()
        chosen = scores.gather(2, labels.view(-1, 1, 1).expand(-1, logits.shape[1], 1))
        return chosen.sum() / max(1, chosen.numel())

    def extra_repr(self) -> str:
        """What the printed module adds."""
        return f"score={self.score!r}"
