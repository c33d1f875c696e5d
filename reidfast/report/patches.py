# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Where PatchNet looks: its patches drawn on images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from reidfast.data.images import EvalTransform
from reidfast.models.paul import PatchNet

__all__ = ["draw_patches", "patch_corners"]

COLORS = ((204, 51, 51), (230, 140, 20), (200, 190, 30), (50, 160, 70), (40, 110, 200), (140, 70, 180))
GAP = 6


def patch_corners(theta: Tensor, height: int, width: int) -> Tensor:
    """The corners of affine patches in pixels: theta [..., 2, 3] -> (x, y) of four corners in turn, [..., 4, 2].

    A patch is what its transform makes of the square from (-1, -1) to (1, 1); -1 and 1 are the image's borders.
    """
    square = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]], dtype=theta.dtype, device=theta.device)
    xy = square @ theta.mT
    return (xy + 1) / 2 * torch.tensor([width, height], dtype=theta.dtype, device=theta.device)


@torch.inference_mode()
def draw_patches(
    model: PatchNet, images: Sequence[Image.Image], *, size: tuple[int, int], zoom: int = 2, filter: str = "bilinear"
) -> Image.Image:
    """The images in a row, and under each the outlines of its patches, one colour each from top to bottom.

    Args:
        model: Put into evaluation mode, and back after.
        images: RGB pictures.
        size: (height, width) that the network is given.
        zoom: Pixels drawn for one of `size`.
        filter: Resize filter.
    """
    height, width = size
    transform = EvalTransform(height, width, filter)
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        theta = model.transforms(torch.stack([transform(image) for image in images]).to(device)).float().cpu()
    finally:
        model.train(training)
    w, h = zoom * width, zoom * height
    corners = patch_corners(theta, h, w)
    sheet = Image.new("RGB", (GAP + len(images) * (w + GAP), 2 * h + 3 * GAP), "white")
    for i, image in enumerate(images):
        picture = image.resize((w, h), Image.Resampling.BILINEAR)
        left = GAP + i * (w + GAP)
        sheet.paste(picture, (left, GAP))
        draw = ImageDraw.Draw(picture)
        for m, quad in enumerate(corners[i].tolist()):
            outline = [(x - zoom / 2, y - zoom / 2) for x, y in quad]
            draw.line([*outline, outline[0]], fill=COLORS[m % len(COLORS)], width=max(1, zoom))
        sheet.paste(picture, (left, h + 2 * GAP))
    return sheet
