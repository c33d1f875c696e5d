# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""QAN: sets of frames, each frame weighted by a quality that nobody labelled; its parts (P-QAN); mean and max pooling.

Liu, Yan, Ouyang, "Quality Aware Network for Set to Set Recognition", CVPR 2017.

model = create_model("qan", backbone="resnet50", num_classes=625).eval()
model(images, offsets)        # ragged: frames [T, 3, H, W] of sets offsets[s]..offsets[s+1] -> [S, 2048]
model(clips)                  # dense: [S, n, 3, H, W] -> [S, 2048]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from reidfast.models.backbones import Backbone, InceptionV3, MobileNetV2, OSNet, ResNet
from reidfast.models.registry import register_model
from reidfast.models.video import VideoModel
from reidfast.nn.quality import POOLINGS, QualityPool, QualityUnit, quality_weights
from reidfast.ops._checks import check_choice

__all__ = ["QAN", "QANOutput"]

# where the quality unit branches off: the analogue of GoogLeNet's pool3, an eighth of the input
SPLITS: dict[type[Backbone], str] = {
    ResNet: "layer2",
    OSNet: "conv2",
    MobileNetV2: "features.6",
    InceptionV3: "Mixed_5d",
}


class QANOutput(NamedTuple):
    """What the model gives in training mode.

    Attributes:
        sets: Features of the sets, unit length, [S, feature_size]: what the set-level loss sees.
        frames: Features of the frames, [T, D].
        scores: Raw quality scores, [T, parts].
        logits: Identity logits of the frames, [T, num_classes]: what the image-level loss sees; None without classes.
    """

    sets: Tensor
    frames: Tensor
    scores: Tensor
    logits: Tensor | None


@register_model("qan")
class QAN(VideoModel):
    """A backbone, a quality unit on its middle representation, set pooling.

        R_i = features of frame i,  z_i = Q(middle representation of frame i)
        R = normalize(sum_i mu_i R_i),  mu_i = sigmoid(z_i) / sum_j sigmoid(z_j)

    No image-level loss is made from Q's output, so that Q learns from set-level losses alone; the backbone learns from
    both. In training mode `QANOutput`, in evaluation mode the sets' features at unit length.

    Args:
        backbone: Any backbone.
        num_classes: Training identities; None: no classifier.
        pooling: "quality", or the comparisons "mean" and "max", which have no quality unit.
        split: Name of the backbone's module whose output is the middle representation; "map": the backbone's last map;
            "image": the pixels; None: an eighth of the input, where the backbone is one of ours.
        unit: Kind of the quality unit (`reidfast.nn.QualityUnit`); with split="image": "image".
        hidden: Its channels.
        parts: Horizontal parts with a score and a feature each (P-QAN: 3, of 3, 2 and 2 of 7 rows); 1: the backbone's
            own pooled feature.
        dim: Width of a linear layer behind the frame's feature; None: none. As wide as that feature, it starts as the
            identity.
        size: (height, width) of the images; kinds "flat" and "image" need it.
        detach_trunk: Keep the quality unit's gradient from the backbone (the published networks do not).
    """

    classifier_keys = ("classifier.weight",)

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        *,
        pooling: str = "quality",
        split: str | None = None,
        unit: str | None = None,
        hidden: int = 128,
        parts: int = 1,
        dim: int | None = None,
        size: tuple[int, int] = (256, 128),
        detach_trunk: bool = False,
    ) -> None:
        super().__init__()
        check_choice("QAN", "pooling", pooling, POOLINGS)
        if parts < 1:
            raise ValueError(f"QAN: expected parts of at least 1, got {parts}")
        if split is None:
            split = next((name for kind, name in SPLITS.items() if isinstance(backbone, kind)), "map")
        modules = dict(backbone.named_modules())
        if split not in ("map", "image") and split not in modules:
            near = ", ".join(n for n in modules if n and n.count(".") == 0)
            raise ValueError(f"QAN: expected split 'map', 'image' or a module of the backbone ({near}), got {split!r}")
        self.backbone, self.split, self.parts, self.detach_trunk = backbone, split, parts, detach_trunk
        self.pool = QualityPool(pooling)
        self.quality: QualityUnit | None = None
        if pooling == "quality":
            unit = unit or ("image" if split == "image" else "pool3")
            channels, grid = (3, tuple(size)) if split == "image" else self._middle_size(size)
            self.quality = QualityUnit(channels, parts, kind=unit, hidden=hidden, size=grid)  # type: ignore[arg-type]
        width = backbone.feature_size if parts == 1 else backbone.out_channels
        self.embed = nn.Linear(width, dim, bias=False) if dim is not None else None
        if self.embed is not None:
            nn.init.eye_(self.embed.weight) if dim == width else nn.init.normal_(self.embed.weight, std=width**-0.5)
        self.feature_size = parts * (dim or width)
        self.classifier = None
        if num_classes is not None:
            self.classifier = nn.Linear(self.feature_size, num_classes)
            nn.init.normal_(self.classifier.weight, std=0.001)
            nn.init.zeros_(self.classifier.bias)

    def _middle_size(self, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        training = self.backbone.training
        device = next((p.device for p in self.backbone.parameters()), torch.device("cpu"))
        try:
            with torch.no_grad():
                found = self.trunk(torch.zeros(1, 3, *size, device=device), evaluate=True)[1].shape
        finally:
            self.backbone.train(training)
        return int(found[1]), (int(found[2]), int(found[3]))

    @contextmanager
    def _tap(self) -> Iterator[list[Tensor]]:
        """Collects the middle representation while the backbone runs."""
        caught: list[Tensor] = []
        if self.split in ("map", "image"):
            yield caught
            return
        hook = self.backbone.get_submodule(self.split).register_forward_hook(lambda m, i, out: caught.append(out))
        try:
            yield caught
        finally:
            hook.remove()

    def trunk(self, images: Tensor, *, evaluate: bool = False) -> tuple[Tensor, Tensor]:
        """Images [T, 3, H, W] -> the backbone's map [T, C, h, w], and the middle representation."""
        if evaluate:
            self.backbone.eval()
        with self._tap() as caught:
            maps = self.backbone.forward_map(images)
        return maps, caught[0] if caught else (images if self.split == "image" else maps)

    def frame_features(self, maps: Tensor) -> Tensor:
        """The backbone's maps -> features of the frames, [T, D]; with parts [T, P, D]."""
        if self.parts == 1:
            x = self.backbone.pool(maps)
        else:
            rows = torch.tensor_split(maps, self.parts, dim=2)
            if rows[-1].shape[2] < 1:
                raise ValueError(f"QAN: expected a map of at least {self.parts} rows, got {maps.shape[2]}")
            x = torch.stack([part.mean((2, 3)) for part in rows], 1)
        return x if self.embed is None else self.embed(x)

    def scores(self, middle: Tensor) -> Tensor:
        """Middle representation -> raw quality scores [T, P]; zeros where pooling is not by quality."""
        if self.quality is None:
            return middle.new_zeros(len(middle), self.parts)
        return self.quality(middle.detach() if self.detach_trunk else middle)

    def encode_frames(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [T, 3, H, W] -> what is kept of each frame: features [T, D] or [T, P, D], scores [T, P]."""
        maps, middle = self.trunk(images)
        return self.frame_features(maps), self.scores(middle)

    def pool_frames(self, features: Tensor, scores: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Frames of sets -> features of the sets at unit length, [S, feature_size]; any sizes, any order."""
        return functional.normalize(self.pool(features, scores.to(features.dtype), offsets), dim=1)

    def forward_frames(self, features: Tensor, scores: Tensor, offsets: Tensor | None) -> QANOutput | Tensor:
        """From the frames' features and scores: ragged [T, ...] with offsets, or dense [S, n, ...]."""
        sets = self.pool_frames(features, scores, offsets)
        if not self.training:
            return sets
        frames = features.flatten(0, 1) if offsets is None else features
        logits = None if self.classifier is None else self.classifier(frames.flatten(1))
        return QANOutput(sets, frames, scores.reshape(-1, self.parts), logits)

    def forward(self, images: Tensor, offsets: Tensor | None = None) -> QANOutput | Tensor:
        """Sets of frames.

        Args:
            images: [T, 3, H, W] with offsets; [S, n, 3, H, W]; or [B, 3, H, W] without offsets: B sets of one.
            offsets: int64 [S+1], set s is images[offsets[s]:offsets[s+1]].
        """
        if images.dim() != (5 if offsets is None and images.dim() == 5 else 4) or images.shape[-3] != 3:
            raise ValueError(
                f"QAN: expected images [T, 3, H, W] (with offsets [S+1] where they are sets) or [S, n, 3, H, W], "
                f"got {tuple(images.shape)}"
            )
        if offsets is None and images.dim() == 4:
            images = images.unsqueeze(1)
        if offsets is not None:
            return self.forward_frames(*self.encode_frames(images), offsets)
        features, scores = self.encode_frames(images.flatten(0, 1))
        shape = images.shape[:2]
        return self.forward_frames(features.unflatten(0, shape), scores.unflatten(0, shape), None)

    def embed_chunks(self, chunks: Iterable[Tensor]) -> Tensor:
        """Embeddings [B, feature_size] of B sets whose frames come in chunks [B, n, 3, H, W]."""
        kept = []
        for part in chunks:
            features, scores = self.encode_frames(part.flatten(0, 1))
            kept.append((features.unflatten(0, part.shape[:2]), scores.unflatten(0, part.shape[:2])))
        return self.pool_frames(torch.cat([k[0] for k in kept], 1), torch.cat([k[1] for k in kept], 1))

    @torch.no_grad()
    def explain(self, images: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Quality sigmoid(z) of each frame, and what it counts in its set, mu: both [T, P]."""
        scores = self.encode_frames(images)[1]
        return scores.sigmoid(), quality_weights(scores, offsets).to(scores.dtype)
