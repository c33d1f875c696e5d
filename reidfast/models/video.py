# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What the models of tracklets share: clips to feature maps, and the size of those."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from reidfast.models.backbones import Backbone
from reidfast.models.over_backbone import OverBackbone

__all__ = ["VideoModel", "feature_grid"]


def feature_grid(backbone: Backbone, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the map that a backbone makes of images of that size, found by making one."""
    device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    training = backbone.training
    try:
        with torch.no_grad():
            found = backbone.eval().forward_map(torch.zeros(1, 3, height, width, device=device)).shape
    except RuntimeError as error:
        raise ValueError(
            f"feature_grid: {type(backbone).__name__} makes no map of images of {height} x {width}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    finally:
        backbone.train(training)
    return int(found[2]), int(found[3])


class VideoModel(OverBackbone):
    """A backbone over the frames of clips, and a head over their maps.

    Clips are (B, T, 3, H, W); images (B, 3, H, W) are clips of one frame. In evaluation mode a model gives the
    embedding (B, feature_size).
    """

    def maps(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W), or images (B, 3, H, W) -> maps (B, T, C, h, w)."""
        if clips.dim() == 4:
            clips = clips.unsqueeze(1)
        if clips.dim() != 5 or clips.shape[2] != 3 or clips.shape[1] < 1:
            raise ValueError(
                f"{type(self).__name__}: expected clips (B, T, 3, H, W) with T >= 1, or images (B, 3, H, W), "
                f"got {tuple(clips.shape)}"
            )
        return self.backbone.forward_map(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Maps (B, T, C, h, w) of whole tracks of one length -> embeddings (B, feature_size)."""
        raise NotImplementedError

    def embed_chunks(self, chunks: Iterable[Tensor]) -> Tensor:
        """Embeddings (B, feature_size) of B tracks whose frames come in chunks (B, t, 3, H, W), in time order."""
        raise NotImplementedError

    @torch.no_grad()
    def embed_track(self, frames: Tensor | Iterable[Tensor], *, chunk: int = 32) -> Tensor:
        """Embedding (feature_size,) of one whole track.

        Args:
            frames: (T, 3, H, W), or chunks of it in time order, which need not be in memory together.
            chunk: How many frames of a tensor the backbone sees at a time.
        """
        chunks = frames.split(chunk) if isinstance(frames, Tensor) else frames
        return self.embed_chunks(part.unsqueeze(0) for part in chunks)[0]
