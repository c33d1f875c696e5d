# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The loss of CASN: one training step of identification, erasing, verification and consistency."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from reidfast.losses.attention import AttentionLoss, SoftErase
from reidfast.losses.consistency import ConsistencyLoss
from reidfast.losses.cross_entropy import CrossEntropyLoss
from reidfast.nn.grad_cam import frozen_mode
from reidfast.ops._checks import check_choice

if TYPE_CHECKING:
    from reidfast.models.casn import CASN

CLASSES = ("true", "predicted")
MASK_FORWARDS = ("train", "batch", "eval")


class CASNTerms(NamedTuple):
    """What `CASNLoss` gives.

    Attributes:
        total: What is minimised.
        terms: The four losses before their weights, those that were computed: identification, attention, verification,
            consistency; detached.
        watched: Detached figures to log: accuracy; constant_maps, the share of images whose identity map does not vary;
            pair_accuracy; indicator, the share of ones; undefined_pairs, the share of positive pairs without profile.
    """

    total: Tensor
    terms: dict[str, Tensor]
    watched: dict[str, Tensor]


class CASNLoss(nn.Module):
    """One step of CASN.

        L = L_ide + lambda_1 L_ia + lambda_2 (L_bce + alpha_sa L_sa)

    L_ide cross-entropy, summed over PCB's parts; L_ia `AttentionLoss` of the images erased by their identity attention;
    L_bce binary cross-entropy of `PairHead`; L_sa `ConsistencyLoss` of the pairs' attention. A term of weight 0 is not
    computed.

    Zheng, Karanam, Wu, Radke, "Re-Identification with Consistent Attentive Siamese Networks", CVPR 2019. The weights
    are not the paper's word (docs/methods/casn.md): tune them on training identities.

    Args:
        attention: lambda_1.
        siamese: lambda_2.
        consistency: alpha_sa.
        label_smoothing: Label smoothing of the cross-entropy.
        alpha: See `SoftErase`.
        beta: See `SoftErase`.
        normalisation: See `SoftErase`.
        score: See `AttentionLoss`.
        classes: Whose logit the identity attention explains, the "true" or the "predicted" one.
        mask_forward: Batch norms while the erased images pass: "train" as for the images themselves, which mixes the
            erased images into the running statistics; "batch" normalises by the batch but leaves the running statistics
            alone; "eval" uses the running ones.
        threshold: See `ConsistencyLoss`.
        span: See `ConsistencyLoss`.
        margin: See `ConsistencyLoss`.
    """

    def __init__(
        self,
        *,
        attention: float = 0.5,
        siamese: float = 0.05,
        consistency: float = 0.2,
        label_smoothing: float = 0.0,
        alpha: float = 10.0,
        beta: float = 0.5,
        normalisation: str = "image",
        score: str = "probability",
        classes: str = "true",
        mask_forward: str = "train",
        threshold: float = 0.5,
        span: str = "crop",
        margin: float | None = None,
    ) -> None:
        super().__init__()
        check_choice("CASNLoss", "classes", classes, CLASSES)
        check_choice("CASNLoss", "mask_forward", mask_forward, MASK_FORWARDS)
        if min(attention, siamese, consistency) < 0:
            raise ValueError(f"CASNLoss: expected weights >= 0, got {attention}, {siamese}, {consistency}")
        self.attention, self.siamese, self.consistency = attention, siamese, consistency
        self.classes, self.mask_forward = classes, mask_forward
        self.cross_entropy = CrossEntropyLoss(label_smoothing)
        self.erase = SoftErase(alpha=alpha, beta=beta, normalisation=normalisation)
        self.recognised = AttentionLoss(score)
        self.consistent = ConsistencyLoss(threshold=threshold, span=span, margin=margin)

    @property
    def needs_pairs(self) -> bool:
        """Whether a step looks at pairs."""
        return self.siamese > 0

    def forward(
        self,
        model: CASN,
        images: Tensor,
        labels: Tensor,
        first: Tensor | None = None,
        second: Tensor | None = None,
        positives: int = 0,
        *,
        attentive: bool = True,
    ) -> CASNTerms:
        """Losses of a batch.

        Args:
            model: In training mode.
            images: (B, 3, H, W).
            labels: Classes, (B,).
            first: Place in the batch of each pair's first image, (N,); needed where `needs_pairs`.
            second: Place in the batch of each pair's second image, (N,).
            positives: How many of the pairs, the first ones, show one person.
            attentive: With the two attention losses; without, identification and verification only, as in the first
                epochs, when there is nothing worth attending to yet.
        """
        if self.needs_pairs and (first is None or second is None):
            raise ValueError("CASNLoss: expected first and second, the places of pairs in the batch, with siamese > 0")
        cells = model.backbone.forward_map(images)
        out = model.head(cells)
        identification = sum(
            (self.cross_entropy(out.logits[:, p], labels) for p in range(out.logits.shape[1])), out.logits.new_zeros(())
        )
        total = identification
        terms = {"identification": identification.detach()}
        watched = {"accuracy": (out.logits.detach().sum(1).argmax(1) == labels).float().mean()}
        if attentive and self.attention:
            classes = labels if self.classes == "true" else model.predicted(cells)
            maps = model.identity_attention(cells, classes)
            erased = self.erase(images, maps.to(images.dtype))
            with self._mask_forward(model):
                loss = self.recognised(model.head(model.backbone.forward_map(erased.images)).logits, labels)
            total = total + self.attention * loss
            terms["attention"] = loss.detach()
            watched["constant_maps"] = erased.constant.float().mean()
        if first is not None and second is not None and self.needs_pairs:
            same = torch.arange(len(first), device=labels.device) < positives
            q = model.pair(out.features[first], out.features[second])
            loss = functional.binary_cross_entropy_with_logits(q, same.to(q.dtype))
            total = total + self.siamese * loss
            terms["verification"] = loss.detach()
            watched["pair_accuracy"] = ((q.detach() > 0) == same).float().mean()
            if attentive and self.consistency:
                n = positives if self.consistent.margin is None else len(first)  # only pairs that the loss looks at
                one, two, chosen = model.pair_attention(cells, first[:n], second[:n])
                result = self.consistent(one, two, same[:n])
                total = total + self.siamese * self.consistency * result.loss
                terms["consistency"] = result.loss.detach()
                watched["indicator"] = chosen.share.float().mean()
                if positives:
                    watched["undefined_pairs"] = 1 - result.defined[:positives].float().mean()
        return CASNTerms(total, terms, watched)

    @contextmanager
    def _mask_forward(self, model: nn.Module) -> Iterator[None]:
        frozen = frozen_mode(model, only=(_BatchNorm,)) if self.mask_forward == "eval" else nullcontext()
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)] if self.mask_forward == "batch" else []
        before = [m.momentum for m in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            with frozen:
                yield
        finally:
            for norm, momentum in zip(norms, before, strict=True):
                norm.momentum = momentum

    def extra_repr(self) -> str:
        """What the printed module adds."""
        return f"attention={self.attention}, siamese={self.siamese}, consistency={self.consistency}"
