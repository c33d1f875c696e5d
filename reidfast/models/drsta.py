# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""DRSTA: several spatial attentions that are kept apart, a temporal attention for each, and the comparisons.

Li, Bak, Carr, Wang, "Diversity Regularized Spatiotemporal Attention for Video-based Person Re-identification", CVPR
2018.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from reidfast import ops
from reidfast.models.backbones import Backbone
from reidfast.models.registry import register_model
from reidfast.models.video import VideoModel
from reidfast.nn.diverse_attention import HEADS, DiverseAttention
from reidfast.nn.temporal import POOLS, TemporalAttention, TimePool
from reidfast.ops._checks import check_choice

__all__ = ["DRSTA", "DRSTAOutput"]

STAGES = ("backbone", "spatial", "joint")


class DRSTAOutput(NamedTuple):
    """What the model gives in training mode.

    Attributes:
        embedding: Embedding of each clip, unit length, (B, dim); in stage "backbone" of each frame, (B*N, dim).
        attention: Spatial attention maps (B*N, K, h*w), or None where there are none.
        overlap: Overlap of each frame's maps, (B*N,), or None: what `reidfast.losses.DiversityLoss` takes.
    """

    embedding: Tensor
    attention: Tensor | None
    overlap: Tensor | None


class Explanation(NamedTuple):
    """What a clip was seen by.

    Attributes:
        attention: (B, N, K, h, w); sums to 1 over the cells.
        weights: (B, N, K); sums to 1 over the frames.
    """

    attention: Tensor
    weights: Tensor


@register_model("drsta")
class DRSTA(VideoModel):
    """Backbone, K spatial attentions, enhancement, temporal attention, final layer.

        f -> attention s_{n,k} (softmax over cells), x~_{n,k} = sum_l s_{n,k,l} f_{n,l}
        x_{n,k} = normalize(E x~_{n,k})                            E: C -> dim, shared by the k
        x_k = sum_n t_{n,k} x_{n,k}                                t: softmax over the frames
        embedding = normalize(F [x_1 ; ... ; x_K])                 F: K dim -> dim

    In training mode `DRSTAOutput`, in evaluation mode the embedding (B, feature_size), unit length.

    Attributes:
        stage: "backbone": every frame on its own, mean over its cells, one linear layer; "spatial": attention over
            cells, mean over frames; "joint": both attentions. The published schedule walks through them; see
            `set_stage`.

    Args:
        backbone: Any backbone; the paper's is ResNet-50 with last stride 2.
        maps: Attention maps, K. With spatial="average": 1.
        dim: Size of each part's feature and of the embedding.
        spatial: "shared" or "independent" attention heads (`reidfast.nn.DiverseAttention`), or "average": the mean over
            cells, the comparison without attention.
        hidden: Channels inside the attention heads; None: theirs.
        time: "attention", or one of the comparisons: "average", "max", "lstm", "gru".
        final: Whether the last layer F is there; without, the normalised concatenation is the embedding.
        temporal_scale: Factor of the temporal scores (`reidfast.nn.TemporalAttention`).
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        maps: int = 6,
        dim: int = 128,
        spatial: str = "shared",
        hidden: int | None = None,
        time: str = "attention",
        final: bool = True,
        temporal_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("DRSTA", "spatial", spatial, (*HEADS, "average"))
        check_choice("DRSTA", "time", time, ("attention", *POOLS))
        if maps < 1 or dim < 1:
            raise ValueError(f"DRSTA: expected maps and dim of at least 1, got {maps} and {dim}")
        channels = backbone.out_channels
        self.backbone, self.k, self.dim = backbone, 1 if spatial == "average" else maps, dim
        self.attend = None if spatial == "average" else DiverseAttention(channels, maps, hidden=hidden, head=spatial)
        self.enhance = nn.Linear(channels, dim)
        self.time: TemporalAttention | TimePool = (
            TemporalAttention(self.k, dim, standardize=temporal_scale)
            if time == "attention"
            else TimePool(time, self.k * dim)
        )
        self.final = nn.Linear(self.k * dim, dim) if final else None
        self.feature_size = dim if final else self.k * dim
        self.frame = nn.Linear(channels, self.feature_size)
        self.stage = "joint"
        self.frozen = False

    @classmethod
    def create(
        cls, *, backbone: str | nn.Module = "resnet50", backbone_options: dict[str, Any] | None = None, **options: Any
    ) -> DRSTA:
        """The model over a backbone that is made from its name; a ResNet has last stride 2 unless told otherwise."""
        if isinstance(backbone, str) and backbone.startswith("resnet"):
            backbone_options = {"last_stride": 2} | (backbone_options or {})
        return super().create(backbone=backbone, backbone_options=backbone_options, **options)

    def set_stage(self, stage: str, *, freeze_backbone: bool | None = None) -> None:
        """Take up a stage of the schedule: what is computed, and which parameters learn.

        "backbone" trains the backbone and the layer for single frames. "spatial" trains all but the backbone and the
        temporal attention, which is left out (mean over the frames). "joint" trains all but the backbone. The frozen
        backbone stays in evaluation mode; `freeze_backbone=False` lets it learn in the later stages too.
        """
        check_choice("DRSTA.set_stage", "stage", stage, STAGES)
        self.stage = stage
        self.frozen = stage != "backbone" if freeze_backbone is None else freeze_backbone
        for parameter in self.parameters():
            parameter.requires_grad_(stage != "backbone")
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(not self.frozen)
        for parameter in self.frame.parameters():
            parameter.requires_grad_(stage == "backbone")
        if stage == "spatial":
            for parameter in self.time.parameters():
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> DRSTA:
        """As every module; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def parts(self, maps: Tensor) -> tuple[Tensor, ops.DiverseAttention | None]:
        """Maps (B, N, C, h, w) -> enhanced part features (B, N, K, dim), unit length, and the spatial attention."""
        found = None
        if self.attend is None:
            pooled = maps.mean((3, 4)).unsqueeze(2)
        else:
            found = self.attend(maps.flatten(0, 1))
            pooled = found.pooled.unflatten(0, maps.shape[:2])
        return functional.normalize(self.enhance(pooled), dim=-1), found

    def pool_time(self, x: Tensor) -> Tensor:
        """Part features (B, N, K, dim) -> (B, K * dim)."""
        if isinstance(self.time, TimePool):
            return self.time(x.flatten(2))
        if self.stage == "spatial":
            return x.mean(1).flatten(1)
        return self.time(x).flatten(1)

    def _embed(self, x: Tensor) -> Tensor:
        pooled = self.pool_time(x)
        return functional.normalize(pooled if self.final is None else self.final(pooled), dim=1)

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Maps (B, N, C, h, w) of the N frames -> embeddings (B, feature_size), unit length."""
        if self.stage == "backbone":
            frames = functional.normalize(self.frame(maps.mean((3, 4))), dim=2)
            return functional.normalize(frames.mean(1), dim=1)
        return self._embed(self.parts(maps)[0])

    def embed_chunks(self, chunks: Iterable[Tensor]) -> Tensor:
        """Embeddings of B tracks whose frames come in chunks (B, n, 3, H, W): all of them count as the N frames."""
        return self.embed_map_chunks(self.maps(part) for part in chunks)

    def embed_map_chunks(self, chunks: Iterable[Tensor]) -> Tensor:
        """As `embed_chunks`, from maps (B, n, C, h, w); only the part features of the frames are kept."""
        if self.stage == "backbone":
            frames = [functional.normalize(self.frame(maps.mean((3, 4))), dim=2) for maps in chunks]
            return functional.normalize(torch.cat(frames, 1).mean(1), dim=1)
        return self._embed(torch.cat([self.parts(maps)[0] for maps in chunks], 1))

    def encode_frames(self, images: Tensor) -> tuple[Tensor]:
        """Images (b, 3, H, W) -> what is kept of each frame until its tracklet is complete, (b, K, dim)."""
        maps = self.maps(images)
        if self.stage == "backbone":
            return (functional.normalize(self.frame(maps.mean((3, 4))), dim=2),)
        return (self.parts(maps)[0].squeeze(1),)

    def pool_frames(self, x: Tensor, offsets: Tensor) -> Tensor:
        """What `encode_frames` gave of the frames of tracklets of any lengths, `ops.set_pool`'s offsets -> (S, D)."""
        if isinstance(self.time, TimePool) and self.stage != "backbone" and self.time.kind != "average":
            sizes = offsets.diff().tolist()
            return torch.cat([self._embed(one.unsqueeze(0)) for one in x.split(sizes)])
        scores = x.new_zeros(x.shape[1], len(x))
        if isinstance(self.time, TemporalAttention) and self.stage == "joint":
            scores = self.time.scores(x.unsqueeze(0))[0]
        pooled = [ops.set_pool(x[:, k], scores[k], offsets, weighting="softmax") for k in range(x.shape[1])]
        joined = torch.cat(pooled, 1)
        if self.final is not None and self.stage != "backbone":
            joined = self.final(joined)
        return functional.normalize(joined, dim=1)

    def forward_maps(self, maps: Tensor) -> DRSTAOutput | Tensor:
        """From the backbone's maps (B, N, C, h, w)."""
        if not self.training:
            return self.embed_maps(maps)
        if self.stage == "backbone":
            frames = functional.normalize(self.frame(maps.mean((3, 4)).flatten(0, 1)), dim=1)
            return DRSTAOutput(frames, None, None)
        x, found = self.parts(maps)
        if found is None:
            return DRSTAOutput(self._embed(x), None, None)
        return DRSTAOutput(self._embed(x), found.attention, found.overlap)

    def forward(self, clips: Tensor) -> DRSTAOutput | Tensor:
        """Clips (B, N, 3, H, W) of N frames spread over each tracklet, or images (B, 3, H, W)."""
        return self.forward_maps(self.maps(clips))

    @torch.no_grad()
    def explain(self, maps: Tensor) -> Explanation:
        """From the backbone's maps (B, N, C, h, w): where the model looks, and how much each frame counts."""
        x, found = self.parts(maps)
        batch, frames, _, height, width = maps.shape
        if found is None:
            attention = maps.new_full((batch, frames, 1, height, width), 1 / (height * width))
        else:
            attention = found.attention.view(batch, frames, self.k, height, width)
        if isinstance(self.time, TemporalAttention) and self.stage == "joint":
            return Explanation(attention, self.time.weights(x))
        return Explanation(attention, maps.new_full((batch, frames, self.k), 1 / frames))
