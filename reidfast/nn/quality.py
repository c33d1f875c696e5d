# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""How much each frame of a set is worth, and the set's feature made accordingly: the parts of QAN."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from reidfast import ops
from reidfast.ops._checks import check_choice

UNITS = ("pool3", "pool4", "flat", "image")
POOLINGS = ("quality", "mean", "max")


class QualityUnit(nn.Module):
    """Raw quality scores z of frames, from a middle representation or from the pixels; sigmoid(z) is the quality.

        pool3:  3 x (3x3 conv `hidden` + BN + ReLU), 2x2 pooling, mean over the cells, linear        (the default)
        pool4:  2x2 pooling, mean over the cells, linear
        flat:   linear over the flattened map (the released train_PQAN_pool2)
        image:  from pixels: 7x7/2 conv 64, 3x3/2 max pooling, two 3x3 convs 64, 7x7/7 mean, linear, no nonlinearity
                (the released train_PQAN_image)

    Liu, Yan, Ouyang, "Quality Aware Network for Set to Set Recognition", CVPR 2017. The last layer starts with weights
    N(0, 0.01^2) and zero bias, so that every frame starts at a quality near 0.5.

    Args:
        in_channels: Channels of the map; 3 for "image".
        parts: Scores a frame (P-QAN has three).
        kind: See above.
        hidden: Channels of the convolutions of "pool3".
        pooling: Kind of 2x2 pooling: "max", or "mean", which is no more than the mean over the cells that follows.
        size: (height, width) of the input map or image; "flat" and "image" need it.

    Example:
        >>> QualityUnit(64, hidden=16)(torch.randn(5, 64, 8, 4)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_channels: int,
        parts: int = 1,
        *,
        kind: str = "pool3",
        hidden: int = 128,
        pooling: str = "max",
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_choice("QualityUnit", "kind", kind, UNITS)
        check_choice("QualityUnit", "pooling", pooling, ("max", "mean"))
        if parts < 1 or hidden < 1:
            raise ValueError(f"QualityUnit: expected parts and hidden of at least 1, got {parts} and {hidden}")
        if kind in ("flat", "image") and size is None:
            raise ValueError(f"QualityUnit: expected size, the (height, width) of the input, for kind {kind!r}")
        self.kind, self.pooling, self.in_channels, self.parts = kind, pooling, in_channels, parts
        self.size = size
        width = in_channels
        if kind == "pool3":
            layers: list[nn.Module] = []
            for _ in range(3):
                layers += [nn.Conv2d(width, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()]
                width = hidden
            self.block = nn.Sequential(*layers)
        elif kind == "image":
            self.block = nn.Sequential(
                nn.Conv2d(in_channels, 64, 7, 2, 3),
                nn.MaxPool2d(3, 2, ceil_mode=True),
                nn.Conv2d(64, 64, 3, padding=1),
                nn.Conv2d(64, 64, 3, padding=1),
                nn.AvgPool2d(7, 7),
            )
            for module in self.block:
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=0.01)
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        else:
            self.block = nn.Sequential()
        if kind in ("flat", "image"):
            with torch.no_grad():
                width = self.block(torch.zeros(1, in_channels, *(size or ()))).numel()
        self.score = nn.Linear(width, parts)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps or images (T, in_channels, h, w) -> raw scores (T, parts)."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"QualityUnit: expected (T, {self.in_channels}, h, w), got {tuple(x.shape)}")
        if self.kind in ("flat", "image"):
            if tuple(x.shape[2:]) != self.size:
                raise ValueError(
                    f"QualityUnit: expected maps of {self.size} for kind {self.kind!r}, got {tuple(x.shape[2:])}"
                )
            return self.score(self.block(x).flatten(1))
        x = self.block(x)
        if self.pooling == "max" and min(x.shape[2:]) >= 2:
            x = functional.max_pool2d(x, 2)
        return self.score(x.mean((2, 3)))

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"kind={self.kind!r}, parts={self.parts}, pooling={self.pooling!r}"


class QualityPool(nn.Module):
    """Sets of frames to one feature each, weighted by quality.

        mu_i = sigmoid(z_i) / sum_j sigmoid(z_j),    R = sum_i mu_i R_i

    With parts, each part has its own scores and its own sum, and the parts are put side by side. "mean" and "max" are
    the comparisons and do not look at the scores. An empty set gives zeros. ``reidfast.ops.set_pool`` does the work.

    Args:
        pooling: "quality", "mean" or "max".
    """

    def __init__(self, pooling: str = "quality") -> None:
        super().__init__()
        check_choice("QualityPool", "pooling", pooling, POOLINGS)
        self.pooling = pooling

    def forward(self, features: Tensor, scores: Tensor, offsets: Tensor | None = None) -> Tensor:
        """One feature a set.

        Args:
            features: Ragged: (T, D), or (T, P, D) with parts. Dense: (S, n, D), or (S, n, P, D).
            scores: Raw, (T, P) or (S, n, P); P may be left out where it is 1.
            offsets: (S+1,) as for `ops.set_pool`; None: dense.

        Returns:
            (S, D), or (S, P*D).
        """
        frames = 1 if offsets is not None else 2
        scores = scores if scores.dim() > frames else scores.unsqueeze(-1)
        features = features if features.dim() > frames + 1 else features.unsqueeze(-2)
        if features.dim() != frames + 2 or scores.shape != features.shape[:-1]:
            raise ValueError(
                f"QualityPool: expected features {'(T, P, D)' if frames == 1 else '(S, n, P, D)'} and scores to match, "
                f"got {tuple(features.shape)} and {tuple(scores.shape)}"
            )
        if self.pooling == "mean":
            scores = torch.zeros_like(scores)
        if offsets is None:
            x = features.transpose(1, 2)  # (S, P, n, D)
            if self.pooling == "max":
                return x.amax(2).flatten(1) if x.shape[2] else x.new_zeros(len(x), x.shape[1] * x.shape[3])
            return ops.set_pool(x, scores.transpose(1, 2), weighting="sigmoid").flatten(1)
        total, parts, size = features.shape
        if self.pooling == "max":
            return _segment_max(features.flatten(1), offsets)
        if parts == 1:
            return ops.set_pool(features[:, 0], scores[:, 0], offsets, weighting="sigmoid")
        # the parts as further sets: part after part, each with all the frames
        starts = offsets[:-1] + total * torch.arange(parts, device=offsets.device).unsqueeze(1)
        ends = offsets.new_full((1,), total * parts)
        x = features.transpose(0, 1).reshape(parts * total, size)
        pooled = ops.set_pool(x, scores.T.reshape(-1), torch.cat([starts.flatten(), ends]), weighting="sigmoid")
        return pooled.view(parts, -1, size).transpose(0, 1).flatten(1)

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"pooling={self.pooling!r}"


def _segment_max(x: Tensor, offsets: Tensor) -> Tensor:
    """Largest value of each column in each set; zeros for an empty set. Equal values share the gradient."""
    lengths = offsets.diff()
    sets = torch.repeat_interleave(torch.arange(len(lengths), device=x.device), lengths, output_size=len(x))
    out = x.new_zeros(len(lengths), x.shape[1])
    return out.scatter_reduce(0, sets.unsqueeze(1).expand_as(x), x, "amax", include_self=False)


def quality_weights(scores: Tensor, offsets: Tensor) -> Tensor:
    """What each frame counts in its set, mu (T,) or (T, P); sums to 1 over a set. For looking at, in float64."""
    log = functional.logsigmoid(scores.detach().double())
    flat = log.reshape(len(log), -1)
    best = _segment_max(flat, offsets).repeat_interleave(offsets.diff(), 0)
    exp = (flat - best).exp()
    sets = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=exp.device), offsets.diff())
    total = exp.new_zeros(len(offsets) - 1, exp.shape[1]).index_add_(0, sets, exp)
    return (exp / total[sets]).view_as(log)
