# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Random changes to training images, each with its generator given: `transform(image, rng)`.

`rng` is a `numpy.random.Generator`; nothing here keeps or seeds one. `ImageDataset` makes one for each (seed, epoch,
row, copy), so a picture is the same whatever the number of workers, and training can be resumed exactly.

W and H are the sizes of the image at hand; U(a, b) is uniform; a position drawn "uniformly" is an integer that keeps
the window inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn

from reidfast.data.images import FILTERS, IMAGENET_MEAN, IMAGENET_STD, normalize, resize, to_float

Rng = np.random.Generator


class ImageTransform(Protocol):
    """A random change of a picture."""

    def __call__(self, image: Image.Image, rng: Rng) -> Image.Image: ...


def _probability(name: str, p: float) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: expected p in [0, 1], got {p}")
    return float(p)


def _integer(rng: Rng, low: int, high: int) -> int:
    """Uniform in low..high, both included."""
    return low + min(int(rng.random() * (high - low + 1)), high - low)


class Flip:
    """Left-right mirror image with probability p."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = _probability("Flip", p)

    def __call__(self, image: Image.Image, rng: Rng) -> Image.Image:
        return ImageOps.mirror(image) if rng.random() < self.p else image


class PadCrop:
    """`pad` pixels of `fill` on every side, then a window of the old size at a uniform position (usual: 10, 0)."""

    def __init__(self, pad: int = 10, fill: int | tuple[int, int, int] = 0) -> None:
        if pad < 0:
            raise ValueError(f"PadCrop: expected pad of at least 0, got {pad}")
        self.pad, self.fill = int(pad), fill

    def __call__(self, image: Image.Image, rng: Rng) -> Image.Image:
        x, y = _integer(rng, 0, 2 * self.pad), _integer(rng, 0, 2 * self.pad)
        if self.pad == 0:
            return image
        width, height = image.size
        padded = ImageOps.expand(image, self.pad, self.fill)
        return padded.crop((x, y, x + width, y + height))


class ColorJitter:
    """Brightness, contrast, saturation and hue, in random order (torchvision's formulas; PAUL's code: .2, .2, .2, .1).

    Brightness, contrast and saturation blend with factor f = U(max(0, 1-b), 1+b): `out = f * image + (1-f) * other`,
    where the other picture is black, the mean of the grey picture (rounded), the grey picture. Hue adds U(-h, h) of a
    turn to the hue in HSV.
    """

    def __init__(
        self, brightness: float = 0.2, contrast: float = 0.2, saturation: float = 0.2, hue: float = 0.1
    ) -> None:
        if min(brightness, contrast, saturation) < 0 or not 0 <= hue <= 0.5:
            raise ValueError(
                "ColorJitter: expected brightness, contrast, saturation >= 0 and hue in [0, 0.5], "
                f"got {brightness}, {contrast}, {saturation}, {hue}"
            )
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def __call__(self, image: Image.Image, rng: Rng) -> Image.Image:
        order = np.argsort(rng.random(4), kind="stable")
        draws = rng.random(4)
        for what in order.tolist():
            strength = (self.brightness, self.contrast, self.saturation, self.hue)[what]
            if strength == 0:
                continue
            if what == 3:
                image = shift_hue(image, (2 * draws[3] - 1) * strength)
                continue
            low = max(0.0, 1 - strength)
            factor = low + (1 + strength - low) * float(draws[what])
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[what]
            image = enhance(image).enhance(factor)
        return image


def shift_hue(image: Image.Image, turn: float) -> Image.Image:
    """Adds `turn` (1 = once around) to the hue, in Pillow's 8-bit HSV."""
    hue, saturation, value = image.convert("HSV").split()
    shift = int(turn * 255) % 256
    hue = hue.point([(h + shift) % 256 for h in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


class Rotation:
    """Rotation by U(-degrees, degrees) about the middle, size kept, corners filled (PAUL's code: 10, zeros)."""

    def __init__(self, degrees: float = 10.0, filter: str = "nearest", fill: int = 0) -> None:
        if degrees < 0 or filter not in ("nearest", "bilinear", "bicubic"):
            raise ValueError(
                f"Rotation: expected degrees >= 0 and filter nearest|bilinear|bicubic, got {degrees}, {filter!r}"
            )
        self.degrees, self.filter, self.fill = degrees, filter, fill

    def __call__(self, image: Image.Image, rng: Rng) -> Image.Image:
        angle = (2 * rng.random() - 1) * self.degrees
        return image.rotate(angle, FILTERS[self.filter], fillcolor=(self.fill,) * 3)


class AreaCrop:
    """A window of area share q ~ U(area), of any shape that fits (Yang et al., CVPR 2019).

    Up to `tries` times: w uniform in round(qW)..W, h = int(q W H / w); the first with h <= H is cut at a uniform
    position. None: the whole image.
    """

    def __init__(self, area: tuple[float, float] = (0.70, 0.95), tries: int = 100) -> None:
        if not 0 < area[0] <= area[1] <= 1:
            raise ValueError(f"AreaCrop: expected 0 < area[0] <= area[1] <= 1, got {area}")
        self.area, self.tries = (float(area[0]), float(area[1])), int(tries)

    def __call__(self, image: Image.Image, rng: Rng) -> Image.Image:
        width, height = image.size
        for _ in range(self.tries):
            q = self.area[0] + (self.area[1] - self.area[0]) * rng.random()
            w = _integer(rng, round(q * width), width)
            h = int(q * width * height / w)
            if h <= height:
                x, y = _integer(rng, 0, width - w), _integer(rng, 0, height - h)
                return image.crop((x, y, x + w, y + h))
        return image


class RandomErasing:
    """Overwrites a rectangle of a normalised [3,H,W] tensor, in place (Zhong et al., arXiv:1708.04896).

    With probability p, up to `tries` times: area = U(area) * H W, ratio = U(aspect), h = round(sqrt(area * ratio)),
    w = round(sqrt(area / ratio)); the first with h < H and w < W is put at a uniform position.

    Args:
        p: Probability.
        area: Range of the share of the image.
        aspect: Range of height / width, drawn uniformly (not log-uniformly: the published code).
        tries: Attempts.
        fill: Value per channel, written after normalisation. The default is the ImageNet mean itself, (0.485, 0.456,
            0.406), as in the strong baseline's code; 0 is the mean colour.
    """

    def __init__(
        self,
        p: float = 0.5,
        area: tuple[float, float] = (0.02, 0.4),
        aspect: tuple[float, float] = (0.3, 1 / 0.3),
        tries: int = 100,
        fill: Sequence[float] | float = IMAGENET_MEAN,
    ) -> None:
        if not 0 < area[0] <= area[1] <= 1 or not 0 < aspect[0] <= aspect[1]:
            raise ValueError(
                f"RandomErasing: expected rising ranges of area in (0, 1] and aspect, got {area}, {aspect}"
            )
        self.p, self.area, self.aspect, self.tries = _probability("RandomErasing", p), area, aspect, int(tries)
        self.fill = (float(fill),) * 3 if isinstance(fill, (int, float)) else tuple(float(f) for f in fill)

    def rectangle(self, height: int, width: int, rng: Rng) -> tuple[int, int, int, int] | None:
        """(top, left, h, w), or None where nothing is to be erased."""
        if rng.random() >= self.p:
            return None
        for _ in range(self.tries):
            size = (self.area[0] + (self.area[1] - self.area[0]) * rng.random()) * height * width
            ratio = self.aspect[0] + (self.aspect[1] - self.aspect[0]) * rng.random()
            h, w = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
            if h < height and w < width:
                return _integer(rng, 0, height - h), _integer(rng, 0, width - w), h, w
        return None

    def __call__(self, image: Tensor, rng: Rng) -> Tensor:
        found = self.rectangle(image.shape[-2], image.shape[-1], rng)
        if found is not None:
            top, left, h, w = found
            image[..., top : top + h, left : left + w] = torch.tensor(self.fill, dtype=image.dtype).view(-1, 1, 1)
        return image


class TrainTransform:
    """Picture -> normalised tensor, for training: `before`, resize, flip, pad and crop, normalise, erase.

    Args:
        height: Height of the result in pixels.
        width: Width of the result in pixels.
        flip: Probability of the mirror image.
        pad: Padding of `PadCrop` in pixels; 0 leaves it out.
        erase: Probability of `RandomErasing`; or one.
        before: Changes made to the picture in its own size, in order.
        filter: Resize filter.
    """

    random = True

    def __init__(
        self,
        height: int = 256,
        width: int = 128,
        *,
        flip: float = 0.5,
        pad: int = 10,
        erase: float | RandomErasing = 0.5,
        before: Sequence[ImageTransform] = (),
        filter: str = "bilinear",
    ) -> None:
        if filter not in FILTERS:
            raise ValueError(f"TrainTransform: expected filter in {', '.join(FILTERS)}, got {filter!r}")
        if height < 1 or width < 1:
            raise ValueError(f"TrainTransform: expected height and width of at least 1, got {height} x {width}")
        self.height, self.width, self.filter = int(height), int(width), filter
        self.before = tuple(before)
        self.flip, self.pad_crop = Flip(flip), PadCrop(pad)
        self.erase = erase if isinstance(erase, RandomErasing) else RandomErasing(erase)

    def __call__(self, image: Image.Image, rng: Rng) -> Tensor:
        for change in self._changes(rng):
            image = change(image, rng)
        image = resize(image, self.height, self.width, self.filter)
        image = self.pad_crop(self.flip(image, rng), rng)
        return self.erase(normalize(to_float(image)), rng)

    def _changes(self, rng: Rng) -> Sequence[ImageTransform]:
        return self.before


class SurrogateTransform(TrainTransform):
    """PAUL's surrogate view (Yang et al., CVPR 2019): colour jitter, rotation, area crop, then flip, resize, normalise.

    Args:
        height: Height of the result in pixels.
        width: Width of the result in pixels.
        mode: `all` (the released code) applies the three changes in that order; `one_of` (the paper) one of them,
            drawn for each picture, the jitter then without hue.
        flip: Probability of the mirror image.
        filter: Resize filter.
    """

    def __init__(
        self, height: int = 384, width: int = 128, *, mode: str = "all", flip: float = 0.5, filter: str = "bilinear"
    ) -> None:
        if mode not in ("all", "one_of"):
            raise ValueError(f"SurrogateTransform: expected mode 'all' or 'one_of', got {mode!r}")
        jitter = ColorJitter(hue=0.1 if mode == "all" else 0.0)
        super().__init__(
            height, width, flip=flip, pad=0, erase=0.0, before=(jitter, Rotation(), AreaCrop()), filter=filter
        )
        self.mode = mode

    def _changes(self, rng: Rng) -> Sequence[ImageTransform]:
        return self.before if self.mode == "all" else (self.before[_integer(rng, 0, len(self.before) - 1)],)


class Views:
    """Several transforms of one picture, stacked: [views, 3, H, W]; `Views(TrainTransform(), SurrogateTransform())`."""

    random = True

    def __init__(self, *transforms: Any) -> None:
        if not transforms:
            raise ValueError("Views: expected at least one transform, got none")
        self.transforms = transforms

    def __call__(self, image: Image.Image, rng: Rng) -> Tensor:
        views = [t(image, rng) if getattr(t, "random", False) else t(image) for t in self.transforms]
        return torch.stack(views)


class BatchAugment(nn.Module):
    """Flip, pad and crop, normalise and erase for a whole batch at once, on the batch's device, from one generator.

    The same distributions as `TrainTransform` (a rectangle is looked for `tries` times at once), with no host-device
    synchronisation on a GPU: the generator must live on the batch's device.

    Args:
        flip: Probability of the mirror image.
        pad: Padding in pixels before the crop.
        erase: The erasing, or its probability.
        mean: Mean of the normalisation, by channel.
        std: Standard deviation of the normalisation, by channel.
    """

    def __init__(
        self,
        flip: float = 0.5,
        pad: int = 10,
        erase: float | RandomErasing = 0.5,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.p_flip, self.pad = _probability("BatchAugment", flip), int(pad)
        self.erase = erase if isinstance(erase, RandomErasing) else RandomErasing(erase, tries=16)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("fill", torch.tensor(self.erase.fill).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Uint8 [B,3,H,W] -> normalised float32 [B,3,H,W]; in evaluation mode only normalised."""
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise ValueError(f"BatchAugment: expected uint8 [B,3,H,W], got {images.dtype} {tuple(images.shape)}")
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        if not self.training:
            return (images.float() / 255 - mean) / std
        where = self._draw(images, generator)
        if images.device.type == "cpu":
            return self._one_by_one(images, where)
        return self._erase(self._move(images, where).float().div_(255).sub_(mean).div_(std), where)

    def _draw(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """What happens to each image, int64 [B,7]: flipped; y, x of the crop; top, left, height, width of the hole."""
        b, _, height, width = images.shape
        device = images.device

        def draw(*shape: int) -> Tensor:
            return torch.rand(*shape, device=device, generator=generator)

        def integers(count: Tensor | int, *shape: int) -> Tensor:
            value = (draw(*shape) * count).long()
            return torch.minimum(value, torch.as_tensor(count, device=device) - 1)

        flipped = (draw(b, 1) < self.p_flip).long()
        y, x = integers(2 * self.pad + 1, b, 1), integers(2 * self.pad + 1, b, 1)
        e = self.erase
        size = (e.area[0] + (e.area[1] - e.area[0]) * draw(b, e.tries)) * height * width
        ratio = e.aspect[0] + (e.aspect[1] - e.aspect[0]) * draw(b, e.tries)
        h, w = (size * ratio).sqrt().round().long(), (size / ratio).sqrt().round().long()
        fits = (h < height) & (w < width)
        first = fits.int().argmax(1, keepdim=True)
        found = fits.gather(1, first) & (draw(b, 1) < e.p)
        h, w = h.gather(1, first) * found, w.gather(1, first) * found
        top, left = integers((height - h + 1).clamp(min=1), b, 1), integers((width - w + 1).clamp(min=1), b, 1)
        return torch.cat([flipped, y, x, top, left, h, w], 1)

    def _move(self, images: Tensor, where: Tensor) -> Tensor:
        """Flip, pad and crop as one gather."""
        b, _, height, width = images.shape
        flipped, y, x = where[:, :3].split(1, 1)
        y = torch.arange(height, device=images.device) + y - self.pad  # [B,H]: where each pixel comes from
        x = torch.arange(width, device=images.device) + x - self.pad
        inside = ((y >= 0) & (y < height)).view(b, 1, height, 1) & ((x >= 0) & (x < width)).view(b, 1, 1, width)
        x = torch.where(flipped > 0, width - 1 - x, x)
        y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
        batch = torch.arange(b, device=images.device).view(b, 1, 1)
        moved = images[batch, :, y.view(b, height, 1), x.view(b, 1, width)].permute(0, 3, 1, 2)
        return torch.where(inside, moved, 0)

    def _erase(self, images: Tensor, where: Tensor) -> Tensor:
        b, _, height, width = images.shape
        top, left, h, w = where[:, 3:].split(1, 1)
        rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        in_rows = ((rows >= top) & (rows < top + h)).view(b, 1, height, 1)
        in_columns = ((columns >= left) & (columns < left + w)).view(b, 1, 1, width)
        return torch.where(in_rows & in_columns, self.get_buffer("fill"), images)

    def _one_by_one(self, images: Tensor, where: Tensor) -> Tensor:
        """The same results an image at a time, in the cache: on the CPU far faster than a gather and whole passes."""
        b, _, height, width = images.shape
        mean, std, fill = (self.get_buffer(name)[0] for name in ("mean", "std", "fill"))
        out = torch.empty(b, 3, height, width)
        out.copy_(-mean / std)  # black, as padding is
        for source, target, (flipped, y, x, top, left, h, w) in zip(images, out, where.tolist(), strict=True):
            dy, dx = y - self.pad, x - self.pad
            y0, y1, x0, x1 = max(0, -dy), min(height, height - dy), max(0, -dx), min(width, width - dx)
            if y0 < y1 and x0 < x1:
                first = width - x1 - dx if flipped else x0 + dx
                window = source[:, y0 + dy : y1 + dy, first : first + x1 - x0]
                window = window.flip(-1) if flipped else window
                plain = window.to(torch.float32, memory_format=torch.contiguous_format)
                target[:, y0:y1, x0:x1] = plain.div_(255).sub_(mean).div_(std)
            if h and w:
                target[:, top : top + h, left : left + w] = fill
        return out
