# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""CASN, the consistent attentive Siamese network: a baseline whose attention is part of what is trained."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reidfast.models.backbones import Backbone
from reidfast.models.baselines import IDE, PCB, Baseline, BaselineOutput
from reidfast.models.registry import register_model
from reidfast.nn.grad_cam import (
    closed_form_reason,
    frozen_layers,
    frozen_mode,
    grad_cam_from_pooled,
    grad_cam_from_score,
)
from reidfast.ops._checks import check_choice

__all__ = ["CASN", "Indicator", "PairHead"]

BASES: dict[str, type[IDE] | type[PCB]] = {"ide": IDE, "pcb": PCB}
DIFFERENCES = ("neg_square", "square", "abs", "signed")
INDICATORS = ("gradient", "contribution")
TARGETS = ("sum", "mean", "each")


class Indicator(NamedTuple):
    """Which elements of the features of a pair count as evidence, 0 and 1 in the features' dtype; no gradient.

    Attributes:
        first: For the first image, (B, D).
        second: For the second, (B, D).
        share: Share of ones that the rule gave, (B,), over both; where it gave none, all ones are used instead.
    """

    first: Tensor
    second: Tensor
    share: Tensor


class PairHead(nn.Module):
    """Do two features show one person? A linear classifier on the difference of the features.

        q = w . phi(f_1, f_2) + b                       BCEWithLogits(q, same person)

        neg_square  phi = -(f_1 - f_2)^2        square  phi = (f_1 - f_2)^2
        abs         phi = |f_1 - f_2|           signed  phi = f_1 - f_2

    All forms are linear in w; they start as the mean over the elements, signed so that a small difference means one
    person ("signed" starts at random, as it has no such sense). The indicator says which elements speak for "same":

        gradient      c_{b,k} = 1[d q / d f_{b,k} > 0]                  depends on the partner
        contribution  c_k = 1[w_k phi_k + b / D > 0]                    one for both

    Args:
        size: D.
        diff: phi.
        indicator: The rule.
    """

    def __init__(self, size: int, *, diff: str = "neg_square", indicator: str = "gradient") -> None:
        super().__init__()
        check_choice("PairHead", "diff", diff, DIFFERENCES)
        check_choice("PairHead", "indicator", indicator, INDICATORS)
        self.diff, self.rule = diff, indicator
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.zeros(()))
        if diff == "signed":
            nn.init.normal_(self.weight, std=1 / size)
        else:
            nn.init.constant_(self.weight, 1 / size if diff == "neg_square" else -1 / size)

    def phi(self, first: Tensor, second: Tensor) -> Tensor:
        """The difference, (B, D)."""
        difference = first - second
        if self.diff == "neg_square":
            return -difference.square()
        if self.diff == "square":
            return difference.square()
        return difference.abs() if self.diff == "abs" else difference

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Features (B, D) and (B, D) -> q (B,)."""
        return self.phi(first, second) @ self.weight + self.bias

    @torch.no_grad()
    def indicator(self, first: Tensor, second: Tensor) -> Indicator:
        """Which elements of features (B, D) and (B, D) count."""
        if self.rule == "contribution":
            one = two = self.phi(first, second) * self.weight + self.bias / len(self.weight) > 0
        else:
            difference = first - second
            if self.diff == "signed":
                slope = self.weight.expand_as(difference)
            elif self.diff == "abs":
                slope = self.weight * difference.sign()
            else:
                slope = self.weight * difference * (-1 if self.diff == "neg_square" else 1)
            one, two = slope > 0, slope < 0
        share = (one.sum(1) + two.sum(1)) / (2 * one.shape[1])
        one, two = (c | ~c.any(1, keepdim=True) for c in (one, two))
        return Indicator(one.to(first.dtype), two.to(first.dtype), share)

    def extra_repr(self) -> str:
        """What the printed module adds."""
        return f"{len(self.weight)}, diff={self.diff!r}, indicator={self.rule!r}"


@register_model("casn")
class CASN(Baseline):
    """IDE or PCB with trainable attention: Grad-CAM of the identity, and of what makes a pair one person.

    Zheng, Karanam, Wu, Radke, "Re-Identification with Consistent Attentive Siamese Networks", CVPR 2019. In evaluation
    mode the model is its baseline: no attention, no pairs. `reidfast.losses.CASNLoss` is the training step.

    The attention is made with the head frozen (constant batch-norm statistics, no dropout), so that an image's map
    depends on that image alone and is the same twice.

    Args:
        backbone: Any backbone.
        num_classes: Training identities.
        base: "pcb" or "ide".
        base_options: Options of the baseline (IDE: hidden, dropout; PCB: parts, reduced, dropout).
        target: Map of PCB's part logits: one of their "sum" or their "mean", or "each" a map of its own, which are
            summed.
        detach_weights: The weights of the maps count as constants: no second order.
        closed_form: Write the head's derivative out (`reidfast.nn.frozen_layers`) instead of calling autograd with a
            graph; both are equal to second order. None: where the head allows it.
        diff: See `PairHead`.
        indicator: See `PairHead`.

    Attributes:
        base: The baseline.
        pair: The classifier of pairs.
        closed_form: Whether the derivative is written out.
    """

    classifier_keys = IDE.classifier_keys + PCB.classifier_keys
    base: IDE | PCB

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        base: str = "pcb",
        base_options: dict[str, int | float] | None = None,
        target: str = "sum",
        detach_weights: bool = False,
        closed_form: bool | None = None,
        diff: str = "neg_square",
        indicator: str = "gradient",
    ) -> None:
        super().__init__()
        check_choice("CASN", "base", base, tuple(BASES))
        check_choice("CASN", "target", target, TARGETS)
        self.base = BASES[base](backbone, num_classes, **(base_options or {}))  # type: ignore[arg-type]
        self.feature_size = self.base.feature_size
        self.target, self.detach_weights = target, detach_weights
        self.parts = self.base.parts if isinstance(self.base, PCB) else 1
        layers = self._layers()
        reason = closed_form_reason(layers) or self._pooling_reason(layers)
        if closed_form and reason:
            raise ValueError(f"CASN: the closed form cannot serve this head: {reason}; use closed_form=False")
        self.closed_form = reason is None if closed_form is None else closed_form
        self.pair = PairHead(self._pair_size(), diff=diff, indicator=indicator)

    @property
    def backbone(self) -> Backbone:  # type: ignore[override]
        """The network below."""
        return self.base.backbone

    def forward(self, images: Tensor) -> BaselineOutput | Tensor:
        """Images (B, 3, H, W): what the baseline gives; in training mode features without dropout for `pair`."""
        if not self.training:
            out: Tensor = self.base(images)
            return out
        return self.head(self.backbone.forward_map(images))

    def head(self, cells: Tensor) -> BaselineOutput:
        """Features (B, D) and identity logits (B, P, num_classes) of a map (B, C, h, w), in the head's present mode."""
        if isinstance(self.base, IDE):
            features = self.base.embed[:-1](self.backbone.pool(cells))  # all but the dropout
            return BaselineOutput(features, self.base.classifier(self.base.embed[-1](features)).unsqueeze(1))
        features = self.base.reduce(self.base.dropout(self.pooled(cells).unsqueeze(3))).squeeze(3)  # [B, R, P]
        logits = torch.stack([c(features[:, :, p]) for p, c in enumerate(self._classifiers())], 1)
        return BaselineOutput(features.flatten(1), logits)

    def pooled(self, cells: Tensor) -> Tensor:
        """The averages through which the head sees a map: (B, C, P)."""
        if cells.shape[2] < self.parts:
            raise ValueError(f"CASN: expected a map of at least {self.parts} rows, got {cells.shape[2]}")
        return nn.functional.adaptive_avg_pool2d(cells, (self.parts, 1)).squeeze(3)

    def frozen_features(self, cells: Tensor) -> Tensor:
        """Features (B, D) of a map, with constant batch-norm statistics and no dropout."""
        if self.closed_form:
            return self._join(frozen_layers(self._layers(), self._rows(self.pooled(cells)))[0], len(cells))
        with frozen_mode(self.base):
            return self.head(cells).features

    def identity_attention(self, cells: Tensor, classes: Tensor) -> Tensor:
        """Grad-CAM of the logit of a class per image: maps (B, h, w) of cells (B, C, h, w) and classes (B,)."""
        weight = torch.stack([c.weight for c in self._classifiers()])[:, classes]  # [P, B, R]
        direction = weight.permute(1, 2, 0)  # [B, R, P]
        if self.target == "mean":
            direction = direction / self.parts
        if self.target != "each":
            return self._attention(cells, direction.flatten(1))
        masks = torch.eye(self.parts, dtype=direction.dtype, device=direction.device)
        return torch.stack([self._attention(cells, (direction * m).flatten(1)) for m in masks]).sum(0)

    def predicted(self, cells: Tensor) -> Tensor:
        """The class with the largest sum of part logits, (B,)."""
        with torch.no_grad(), frozen_mode(self.base):
            return self.head(cells).logits.sum(1).argmax(1)

    def pair_attention(self, cells: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Indicator]:
        """Grad-CAM of what speaks for "same" in pairs of images.

        Args:
            cells: Maps of the batch, (B, C, h, w).
            first: Place of each pair's first image in the batch, (N,).
            second: Place of each pair's second image in the batch, (N,).

        Returns:
            Maps of the first images (N, h, w), of the second, and the indicator.
        """
        with torch.no_grad():
            features = self.frozen_features(cells)
        chosen = self.pair.indicator(features[first], features[second])
        sides = self._attention(cells[torch.cat([first, second])], torch.cat([chosen.first, chosen.second]))
        one, two = sides.split(len(first))
        return one, two, chosen

    # the head as layers on averages

    def _layers(self) -> list[nn.Module]:
        if isinstance(self.base, IDE):
            below = getattr(self.backbone, "fc", None)  # OSNet's; _pooling_reason checks that this is all there is
            return [*([below] if isinstance(below, nn.Module) else []), self.base.embed]
        return [self.base.reduce]

    def _classifiers(self) -> list[nn.Linear]:
        found = [self.base.classifier] if isinstance(self.base, IDE) else list(self.base.classifiers)
        return [c for c in found if isinstance(c, nn.Linear)]

    def _pair_size(self) -> int:
        return sum(c.in_features for c in self._classifiers())

    def _pooling_reason(self, layers: list[nn.Module]) -> str | None:
        """Tries whether the backbone's pooling is the mean and these layers; PCB does not use it."""
        if isinstance(self.base, PCB):
            return None
        like = next(self.backbone.parameters(), torch.zeros(()))
        cells = torch.linspace(-1, 2, self.backbone.out_channels * 6, dtype=like.dtype, device=like.device)
        cells = cells.view(2, -1, 3, 1).square()  # 2 images of 3 cells
        with torch.no_grad(), frozen_mode(self.base):
            there = self.base.embed(self.backbone.pool(cells))
            ours = frozen_layers(layers, cells.mean((2, 3)))[0]
        if there.shape == ours.shape and torch.allclose(there, ours, rtol=1e-3, atol=1e-4):
            return None
        return f"the pooling of {type(self.backbone).__name__} is not the mean over the cells"

    def _rows(self, pooled: Tensor) -> Tensor:
        return pooled.transpose(1, 2).flatten(0, 1)  # [B, C, P] -> [B*P, C]

    def _join(self, rows: Tensor, batch: int) -> Tensor:
        return rows.view(batch, self.parts, -1).transpose(1, 2).flatten(1)  # [B*P, R] -> [B, R*P]

    def _split(self, features: Tensor) -> Tensor:
        return self._rows(features.view(len(features), -1, self.parts))

    def _attention(self, cells: Tensor, direction: Tensor) -> Tensor:
        """Maps of the scores sum_k direction_k f_k of features f (B, D), the direction (B, D)."""
        if self.closed_form:
            with torch.no_grad():  # only the signs inside depend on the map
                pooled = self.pooled(cells)
            _, back = frozen_layers(self._layers(), self._rows(pooled))
            gradient = back(self._split(direction)).view(len(cells), self.parts, -1).transpose(1, 2)
            return grad_cam_from_pooled(cells, gradient, detach_weights=self.detach_weights)
        if not torch.is_grad_enabled():
            with torch.enable_grad():
                own = cells.detach().requires_grad_()
                score = (self.frozen_features(own) * direction).sum(1)
                return grad_cam_from_score(score, own, detach_weights=True).detach()
        if not cells.requires_grad:
            cells = cells.detach().requires_grad_()
        score = (self.frozen_features(cells) * direction).sum(1)
        return grad_cam_from_score(score, cells, detach_weights=self.detach_weights)
