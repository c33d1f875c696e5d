# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Any network as a backbone: one that returns a map, tokens or a vector, and those of timm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reidfast.models.registry import register_model

from .base import Backbone

__all__ = ["Adapter", "timm_backbone"]


class Adapter(Backbone):
    """A module of any origin under a re-ID head.

    What the module returns is told by its dimensions: a map [B, C, h, w], tokens [B, N, C] (the first ``prefix`` of
    them class or register tokens, the others a grid read row by row), or a vector [B, C]. Sizes are found with one
    black image.

    Args:
        module: From images [B, 3, H, W] to one of these.
        size: (height, width) of the image tried; the size the network will be given, where it takes only one.
        layout: "auto" (by dimensions), "map", "map_last" ([B, h, w, C]), "tokens", "vector".
        prefix: Tokens before the grid.
        grid: (h, w) of the tokens; None: the one with the image's proportions, else square.
        feature: "mean" over the cells, or "class": the first token.
        select: From what the module returns to the tensor, for modules that return several things.

    Raises:
        ValueError: The module returns something else, or tokens that form no such grid.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        size: tuple[int, int] = (256, 128),
        layout: str = "auto",
        prefix: int = 0,
        grid: tuple[int, int] | None = None,
        feature: str = "mean",
        select: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS or feature not in ("mean", "class"):
            raise ValueError(
                f"Adapter: expected layout in {', '.join(LAYOUTS)} and feature mean or class, got {layout!r}, "
                f"{feature!r}"
            )
        if feature == "class" and prefix < 1:
            raise ValueError("Adapter: expected prefix of at least 1 with feature='class', got 0: there is no token")
        self.module = module
        self.layout, self.prefix, self.feature, self.select = layout, int(prefix), feature, select
        self.grid = None if grid is None else (int(grid[0]), int(grid[1]))
        out = self._try(int(size[0]), int(size[1]))
        if self.layout == "auto":
            self.layout = {2: "vector", 3: "tokens", 4: "map"}[out.dim()]
        if feature == "class" and self.layout != "tokens":
            raise ValueError(f"Adapter: expected tokens with feature='class', got a {self.layout}")
        cells = self._to_map(out, int(size[0]), int(size[1]))
        self.out_channels = self.feature_size = cells.shape[1]
        self.stride = max(1, int(size[0]) // cells.shape[2])

    def _try(self, height: int, width: int) -> Tensor:
        first = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        like = torch.zeros((), device="cpu" if first is None else first.device)
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                return self._run(like.new_zeros(1, 3, height, width))
        finally:
            self.module.train(training)

    def _run(self, images: Tensor) -> Tensor:
        out = self.module(images)
        if self.select is not None:
            out = self.select(out)
        if not isinstance(out, Tensor):
            raise ValueError(
                f"Adapter: expected one tensor from {type(self.module).__name__}, got {type(out).__name__}; "
                "give select, a function that picks it"
            )
        wanted = LAYOUTS[self.layout]
        if out.dim() not in wanted or out.shape[0] != images.shape[0]:
            raise ValueError(
                f"Adapter: expected a map [B, C, h, w], tokens [B, N, C] or a vector [B, C] of {images.shape[0]} "
                f"images (layout {self.layout}), got {tuple(out.shape)}"
            )
        return out

    def _to_map(self, out: Tensor, height: int, width: int) -> Tensor:
        if self.layout == "vector":
            return out[:, :, None, None]
        if self.layout == "map_last":
            return out.permute(0, 3, 1, 2)
        if self.layout == "map":
            return out
        rows, columns = self.grid or token_grid(out.shape[1] - self.prefix, height, width)
        if rows * columns != out.shape[1] - self.prefix:
            raise ValueError(
                f"Adapter: expected {rows} x {columns} tokens after {self.prefix} of prefix, got {out.shape[1]} in all"
            )
        return out[:, self.prefix :].transpose(1, 2).reshape(out.shape[0], out.shape[2], rows, columns)

    def forward_map(self, images: Tensor) -> Tensor:
        """Feature map `[B, C, h, w]` of `images [B, 3, H, W]`; of a vector, 1 x 1."""
        return self._to_map(self._run(images), images.shape[2], images.shape[3])

    def forward(self, images: Tensor) -> Tensor:
        """Feature `[B, D]` of `images [B, 3, H, W]`."""
        out = self._run(images)
        if self.feature == "class":
            return out[:, 0]
        return self.pool(self._to_map(out, images.shape[2], images.shape[3]))


LAYOUTS = {"auto": (2, 3, 4), "map": (4,), "map_last": (4,), "tokens": (3,), "vector": (2,)}


def token_grid(count: int, height: int, width: int) -> tuple[int, int]:
    """(h, w) with h w = count and the proportions of the image, else square.

    Raises:
        ValueError: There is neither.
    """
    rows = math.isqrt(max(0, count * height // max(1, width)))
    if rows and count % rows == 0 and rows * width == count // rows * height:
        return rows, count // rows
    side = math.isqrt(max(0, count))
    if side and side * side == count:
        return side, side
    raise ValueError(
        f"Adapter: {count} tokens of a {height} x {width} image form neither a grid of its proportions nor a square; "
        "give grid=(h, w), or prefix where class tokens come first"
    )


@register_model("timm:")
def timm_backbone(name: str, *, pretrained: bool = False, size: Any = None, **options: Any) -> Adapter:
    """A network of timm under its own name, without its classifier.

    Args:
        name: As in ``timm.list_models()``.
        pretrained: Let timm fetch its weights.
        size: (height, width) that the network is tried with; default: ``img_size`` among the options, else 256 x 128.
        options: Options of ``Adapter`` (grid, feature, prefix, layout) and of ``timm.create_model``; transformers
            of one input size take ``img_size=(256, 128)``.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm does not know the name or an option.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"timm:{name}: the package timm is not installed; pip install timm") from error
    own = {key: options.pop(key) for key in ("grid", "feature", "prefix", "layout", "select") if key in options}
    try:
        module = timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="", **options)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"timm:{name}: {error}") from error
    if "layout" not in own and str(getattr(module, "output_fmt", "")).upper().endswith("NHWC"):
        own["layout"] = "map_last"
    own.setdefault("prefix", int(getattr(module, "num_prefix_tokens", 0)))
    wanted = size if size is not None else options.get("img_size", (256, 128))
    wanted = (wanted, wanted) if isinstance(wanted, int) else wanted
    return Adapter(module, size=(int(wanted[0]), int(wanted[1])), **own)
