# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""RRU + STIM: refine the frames by a recurrent unit, integrate space and time, and the ways it is compared with.

Liu, Yuan, Zhou, Li, Li, "Spatial and Temporal Mutual Promotion for Video-based Person Re-identification", AAAI 2019.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from reidfast.models.backbones import Backbone
from reidfast.models.backbones.inception_v3 import InceptionAux, InceptionV3
from reidfast.models.over_backbone import Weights, make_backbone, need_classes
from reidfast.models.registry import register_model
from reidfast.models.video import VideoModel, feature_grid
from reidfast.nn.rru import RRU
from reidfast.nn.stim import STIM
from reidfast.nn.temporal import POOLS, TimePool
from reidfast.ops._checks import check_choice

__all__ = ["RRUSTIM", "RRUSTIMOutput"]


class RRUSTIMOutput(NamedTuple):
    """What the model gives in training mode.

    Attributes:
        video: Feature of each clip, (B, D).
        parts: Horizontal parts of the refined maps, mean over time and width, (B, C, P).
        logits: Identity logits, (B, num_classes).
        auxiliary: Logits of the auxiliary classifier, (B, num_classes), or None.
    """

    video: Tensor
    parts: Tensor
    logits: Tensor
    auxiliary: Tensor | None


@register_model("rru_stim")
class RRUSTIM(VideoModel):
    """Backbone, refining recurrent unit, spatial-temporal integration, classifier.

    In training mode `RRUSTIMOutput`, in evaluation mode the video feature (B, feature_size), compared after scaling to
    unit length. At test a whole track is one recursion (`embed_track`), in memory that does not grow with its length.

    Args:
        backbone: Any backbone; the paper's is inception_v3.
        grid: Rows and columns of its map.
        num_classes: Training identities.
        refine: Whether the RRU is there.
        time: "stim", or one of the comparisons: "average", "max", "lstm", "gru" over the mean of each frame's map.
        dim: Size of STIM's feature, and of the recurrent networks of the comparisons.
        parts: Horizontal parts; None: one per row of the map, as published.
        auxiliary: Whether the auxiliary classifier of Inception-v3 is there, as published; it sees the mean over time
            of Mixed_6e.
        hidden: Width of the classifier's hidden layer.
        dropout: Before the classifier's last layer.
        rru: Further options of `reidfast.nn.RRU`.
        stim: Further options of `reidfast.nn.STIM`.
    """

    classifier_keys = ("classifier.4.weight",)

    def __init__(
        self,
        backbone: Backbone,
        grid: tuple[int, int],
        num_classes: int,
        *,
        refine: bool = True,
        time: str = "stim",
        dim: int = 256,
        parts: int | None = None,
        auxiliary: bool | None = None,
        hidden: int = 512,
        dropout: float = 0.5,
        rru: dict[str, Any] | None = None,
        stim: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("RRUSTIM", "time", time, ("stim", *POOLS))
        if num_classes < 1:
            raise ValueError(f"RRUSTIM: expected num_classes, the number of training identities, got {num_classes}")
        if auxiliary is None:
            auxiliary = isinstance(backbone, InceptionV3)
        if auxiliary and not isinstance(backbone, InceptionV3):
            raise ValueError(
                f"RRUSTIM: the auxiliary classifier belongs to inception_v3, got {type(backbone).__name__}; "
                "use auxiliary=False"
            )
        channels = backbone.out_channels
        self.backbone, self.grid, self.parts = backbone, grid, parts
        self.rru = RRU(channels, grid, **(rru or {})) if refine else None
        self.head: STIM | TimePool = (
            STIM(channels, dim, **(stim or {})) if time == "stim" else TimePool(time, channels, hidden=dim)
        )
        self.feature_size = self.head.dim
        first, last = nn.Linear(self.feature_size, hidden), nn.Linear(hidden, num_classes)
        nn.init.kaiming_normal_(first.weight, mode="fan_out")
        nn.init.normal_(last.weight, std=0.001)
        nn.init.zeros_(first.bias)
        nn.init.zeros_(last.bias)
        self.classifier = nn.Sequential(first, nn.BatchNorm1d(hidden), nn.LeakyReLU(0.1), nn.Dropout(dropout), last)
        self.aux = InceptionAux(num_classes) if auxiliary else None

    @classmethod
    def create(
        cls,
        *,
        backbone: str | nn.Module = "inception_v3",
        backbone_weights: Weights = None,
        backbone_options: dict[str, Any] | None = None,
        size: tuple[int, int] = (299, 299),
        num_classes: int | None = None,
        **options: Any,
    ) -> RRUSTIM:
        """The model over a backbone that is made from its name, for images of `size` (height, width)."""
        num_classes = need_classes(num_classes)
        made = make_backbone(backbone, backbone_weights, backbone_options)
        return cls(made, feature_grid(made, *size), num_classes, **options)

    def refine(self, maps: Tensor) -> Tensor:
        """Maps (B, T, C, h, w) -> refined maps; the same where there is no RRU."""
        return maps if self.rru is None else self.rru(maps)[0]

    def _pooled(self, refined: Tensor) -> Tensor:
        return self.head(refined if isinstance(self.head, STIM) else refined.mean((3, 4)))

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Maps (B, T, C, h, w) of whole tracks -> video features (B, feature_size)."""
        return self._pooled(self.refine(maps))

    def embed_chunks(self, chunks: Iterable[Tensor]) -> Tensor:
        """Video features (B, feature_size) of B tracks whose frames come in chunks (B, t, 3, H, W)."""
        return self.embed_map_chunks(self.maps(part) for part in chunks)

    def embed_map_chunks(self, chunks: Iterable[Tensor]) -> Tensor:
        """As `embed_chunks`, from maps (B, t, C, h, w)."""
        recursion: Any = None
        pooled: Any = None
        for maps in chunks:
            if self.rru is not None:
                maps, recursion = self.rru(maps, recursion)
            pooled = self.head.step(maps if isinstance(self.head, STIM) else maps.mean((3, 4)), pooled)
        if pooled is None:
            raise ValueError("RRUSTIM: expected at least one frame, got none")
        return self.head.finish(pooled)

    def forward_maps(self, maps: Tensor, below: Tensor | None = None) -> RRUSTIMOutput | Tensor:
        """From the backbone's maps (B, T, C, h, w), and what its auxiliary classifier sees, (B, T, C', h', w')."""
        refined = self.refine(maps)
        video = self._pooled(refined)
        if not self.training:
            return video
        # (B, C, h), summed as RRU's result lies in memory; divided after that, so that the gradient stays a view
        rows = refined.permute(1, 0, 3, 4, 2)  # (T, B, h, w, C)
        stripes = rows.sum(0).sum(2).transpose(1, 2) / (rows.shape[0] * rows.shape[3])
        if self.parts is not None and self.parts != stripes.shape[2]:
            stripes = functional.adaptive_avg_pool1d(stripes, self.parts)
        auxiliary = None if self.aux is None or below is None else self.aux(below.mean(1))
        return RRUSTIMOutput(video, stripes, self.classifier(video), auxiliary)

    def forward(self, clips: Tensor) -> RRUSTIMOutput | Tensor:
        """Clips (B, T, 3, H, W) of consecutive frames, or images (B, 3, H, W)."""
        if self.training and self.aux is not None and clips.dim() == 5:
            assert isinstance(self.backbone, InceptionV3)
            maps, below = self.backbone.forward_maps(clips.flatten(0, 1))
            return self.forward_maps(maps.unflatten(0, clips.shape[:2]), below.unflatten(0, clips.shape[:2]))
        return self.forward_maps(self.maps(clips))
