# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The spatial attention of DRSTA."""

from __future__ import annotations

from torch import Tensor, nn

from reidfast import ops
from reidfast.ops._checks import check_choice

HEADS = ("shared", "independent")


class DiverseAttention(nn.Module):
    """K attention maps over a feature map, what each pools, and how much they overlap.

        shared:       logits = BN(V ReLU(BN(W f)))                    one trunk of 64 channels for all K
        independent:  logits_k = v_k . ReLU(W_k f + b_k) + c_k        128 channels for each of the K

    Li, Bak, Carr, Wang, "Diversity Regularized Spatiotemporal Attention for Video-based Person Re-identification",
    CVPR 2018. The authors' code has the shared trunk, their paper independent heads.

    Args:
        channels: Channels of the feature map, D.
        maps: How many, K.
        hidden: Channels of the trunk, or of each head; None: 64 shared, 128 independent.
        head: "shared" or "independent".

    Example:
        >>> attend = DiverseAttention(channels=16, maps=6).eval()
        >>> out = attend(torch.randn(2, 16, 8, 4))
        >>> out.pooled.shape, out.attention.shape, out.overlap.shape
        (torch.Size([2, 6, 16]), torch.Size([2, 6, 32]), torch.Size([2]))
    """

    def __init__(self, channels: int = 2048, maps: int = 6, *, hidden: int | None = None, head: str = "shared") -> None:
        super().__init__()
        check_choice("DiverseAttention", "head", head, HEADS)
        self.channels, self.maps, self.head = channels, maps, head
        if head == "shared":
            hidden = hidden or 64
            self.trunk = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())
            self.logits = nn.Sequential(nn.Conv2d(hidden, maps, 1, bias=False), nn.BatchNorm2d(maps))
        else:
            hidden = hidden or 128
            self.trunk = nn.Sequential(nn.Conv2d(channels, maps * hidden, 1), nn.ReLU())
            self.logits = nn.Sequential(nn.Conv2d(maps * hidden, maps, 1, groups=maps))

    def forward(self, features: Tensor) -> ops.DiverseAttention:
        """Feature maps (B, D, H, W) -> pooled (B, K, D), attention (B, K, H*W), overlap (B,)."""
        if features.dim() != 4 or features.shape[1] != self.channels:
            raise ValueError(
                f"DiverseAttention: expected features (B, {self.channels}, H, W), got {tuple(features.shape)}"
            )
        return ops.diverse_attention(features, self.logits(self.trunk(features)))

    def extra_repr(self) -> str:
        """What the printed module adds."""
        return f"head={self.head!r}"
