# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
from __future__ import annotations

import colorsys
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from reidfast.data import (
    BatchAugment,
    EvalTransform,
    ImageDataset,
    Records,
    SurrogateTransform,
    TrainTransform,
    Views,
)
from reidfast.data.images import IMAGENET_MEAN, IMAGENET_STD
from reidfast.data.transforms import AreaCrop, ColorJitter, Flip, PadCrop, RandomErasing, Rotation, shift_hue


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(width: int = 24, height: int = 40, seed: int = 0) -> Image.Image:
    return Image.fromarray(rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGE = picture()
PIXELS = np.asarray(IMAGE)


class Fixed:
    """A generator whose uniform numbers are given."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self, size: int | None = None) -> object:
        if size is None:
            return self.values.pop(0)
        taken, self.values = self.values[:size], self.values[size:]
        return np.array(taken)


def test_flip() -> None:
    g = rng()
    flips = [np.asarray(Flip(0.3)(IMAGE, g)) for _ in range(2000)]
    mirrored = [np.array_equal(f, PIXELS[:, ::-1]) for f in flips]
    assert all(m or np.array_equal(f, PIXELS) for m, f in zip(mirrored, flips, strict=True))
    assert abs(np.mean(mirrored) - 0.3) < 0.04
    assert np.array_equal(np.asarray(Flip(0)(IMAGE, g)), PIXELS)


def test_pad_crop() -> None:
    padded = np.pad(PIXELS, ((3, 3), (3, 3), (0, 0)))
    seen = set()
    g = rng()
    for _ in range(600):
        out = np.asarray(PadCrop(3)(IMAGE, g))
        match = [(y, x) for y in range(7) for x in range(7) if np.array_equal(out, padded[y : y + 40, x : x + 24])]
        assert len(match) == 1
        seen.add(match[0])
    assert len(seen) == 49  # every position, both ends included
    assert PadCrop(0)(IMAGE, g) is IMAGE


def blend(pixels: np.ndarray, other: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(factor * pixels.astype(float) + (1 - factor) * other.astype(float), 0, 255)


def test_colour_jitter_formulas() -> None:
    grey = np.asarray(IMAGE.convert("L")).astype(float)
    brighter = np.asarray(ColorJitter(0.5, 0, 0, 0)(IMAGE, Fixed(0.1, 0.2, 0.3, 0.4, 0.9, 0, 0, 0)))
    assert np.abs(brighter - blend(PIXELS, np.zeros_like(PIXELS), 0.5 + 0.9)).max() <= 1
    contrast = np.asarray(ColorJitter(0, 0.4, 0, 0)(IMAGE, Fixed(0.1, 0.2, 0.3, 0.4, 0, 0.25, 0, 0)))
    assert np.abs(contrast - blend(PIXELS, np.full_like(PIXELS, int(grey.mean() + 0.5)), 0.6 + 0.25 * 0.8)).max() <= 1
    less = np.asarray(ColorJitter(0, 0, 1.5, 0)(IMAGE, Fixed(0.1, 0.2, 0.3, 0.4, 0, 0, 0.1, 0)))
    assert np.abs(less - blend(PIXELS, grey[..., None].repeat(3, 2), 0.25)).max() <= 1


def test_hue_formula() -> None:
    moved = np.asarray(shift_hue(Image.new("RGB", (1, 1), (200, 60, 40)), 0.25))[0, 0] / 255
    h, s, v = colorsys.rgb_to_hsv(200 / 255, 60 / 255, 40 / 255)
    assert np.abs(moved - colorsys.hsv_to_rgb((h + 0.25) % 1, s, v)).max() < 0.02
    back = np.asarray(shift_hue(shift_hue(IMAGE, 0.3), -0.3)).astype(int)
    assert np.abs(back - PIXELS).mean() < 4


def test_colour_jitter_order_is_drawn() -> None:
    jitter = ColorJitter(0.9, 0.9, 0, 0)
    values = (0.9, 0.9, 0, 0)
    one = np.asarray(jitter(IMAGE, Fixed(0.1, 0.2, 0.3, 0.4, *values)))
    two = np.asarray(jitter(IMAGE, Fixed(0.2, 0.1, 0.3, 0.4, *values)))
    assert not np.array_equal(one, two)


def test_rotation() -> None:
    g = rng()
    for seed in range(5):
        angle = (2 * rng(seed).random() - 1) * 10
        expected = np.asarray(IMAGE.rotate(angle, Image.Resampling.NEAREST))
        assert np.array_equal(np.asarray(Rotation(10)(IMAGE, rng(seed))), expected)
    assert np.array_equal(np.asarray(Rotation(0)(IMAGE, g)), PIXELS)


def test_area_crop_distribution() -> None:
    big = picture(64, 128)
    sizes = np.array([AreaCrop()(big, g).size for g in [rng()] for _ in range(1500)])
    share = sizes.prod(1) / (64 * 128)
    assert share.max() <= 0.951 and share.min() > 0.68  # q in U(.70, .95); h is cut down to whole pixels
    assert (sizes[:, 0] <= 64).all() and (sizes[:, 1] <= 128).all()
    assert sizes[:, 0].max() == 64 and sizes[:, 1].max() > 120 and sizes[:, 0].min() < 50
    assert abs(share.mean() - 0.825) < 0.02


def test_area_crop_is_the_written_formula() -> None:
    q, u_w, u_x, u_y = 0.4, 0.9, 0.5, 0.99
    out = AreaCrop((0.5, 1.0))(IMAGE, Fixed(q, u_w, u_x, u_y))
    w = round(0.7 * 24) + int(u_w * (24 - round(0.7 * 24) + 1))
    h = int(0.7 * 24 * 40 / w)
    x, y = int(u_x * (24 - w + 1)), int(u_y * (40 - h + 1))
    assert np.array_equal(np.asarray(out), PIXELS[y : y + h, x : x + w])


def test_erasing_distribution() -> None:
    erase = RandomErasing()
    g = rng()
    found = [erase.rectangle(256, 128, g) for _ in range(4000)]
    hit = np.array([f for f in found if f is not None])
    assert abs(len(hit) / 4000 - 0.5) < 0.03
    top, left, h, w = hit.T
    assert (
        (top >= 0).all() and (top + h <= 256).all() and (left + w <= 128).all() and (h < 256).all() and (w < 128).all()
    )
    area, ratio = h * w / (256 * 128), h / w
    assert area.min() > 0.018 and area.max() < 0.405 and ratio.min() > 0.28 and ratio.max() < 3.45
    assert (top + h == 256).any() or (top + h >= 250).any()


def test_erasing_fills_with_the_mean_after_normalisation() -> None:
    image = torch.full((3, 32, 16), 7.0)
    out = RandomErasing(1.0)(image, rng(1))
    erased = out[0] != 7
    assert 0 < erased.sum() < 32 * 16
    rows, columns = erased.any(1).nonzero().squeeze(1), erased.any(0).nonzero().squeeze(1)
    assert erased.sum() == len(rows) * len(columns)  # one rectangle
    for channel in range(3):
        assert torch.allclose(out[channel][erased], torch.tensor(IMAGENET_MEAN[channel]))
    assert torch.equal(RandomErasing(0.0)(torch.ones(3, 8, 8), rng()), torch.ones(3, 8, 8))
    zero = RandomErasing(1.0, fill=0)(torch.ones(3, 32, 16), rng(1))
    assert set(zero.unique().tolist()) == {0.0, 1.0}


def test_train_transform_is_its_parts() -> None:
    transform = TrainTransform(32, 16, pad=4, erase=0.5)
    for seed in range(6):
        g = rng(seed)
        image = PadCrop(4)(Flip()(IMAGE.resize((16, 32), Image.Resampling.BILINEAR), g), g)
        expected = RandomErasing(0.5)(EvalTransform(32, 16)(image), g)
        assert torch.equal(transform(IMAGE, rng(seed)), expected)
    plain = TrainTransform(32, 16, flip=0, pad=0, erase=0)
    assert torch.equal(plain(IMAGE, rng()), EvalTransform(32, 16)(IMAGE))


def test_surrogate() -> None:
    everything = SurrogateTransform(48, 16)
    g = rng(3)
    image = IMAGE
    for change in (ColorJitter(), Rotation(), AreaCrop()):
        image = change(image, g)
    image = Flip()(image.resize((16, 48), Image.Resampling.BILINEAR), g)
    PadCrop(0)(image, g)
    assert torch.equal(everything(IMAGE, rng(3)), EvalTransform(48, 16)(image))
    one = SurrogateTransform(48, 16, mode="one_of")
    kinds = {tuple(type(c).__name__ for c in one._changes(rng(s))) for s in range(40)}
    assert kinds == {("ColorJitter",), ("Rotation",), ("AreaCrop",)}
    assert one.before[0].hue == 0


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda: Flip(1.2), r"p in \[0, 1\], got 1.2"),
        (lambda: PadCrop(-1), "pad of at least 0"),
        (lambda: ColorJitter(hue=0.6), r"hue in \[0, 0.5\]"),
        (lambda: Rotation(-1), "degrees >= 0"),
        (lambda: AreaCrop((0.9, 0.7)), "area"),
        (lambda: RandomErasing(area=(0.0, 0.4)), "rising ranges"),
        (lambda: TrainTransform(32, 16, filter="x"), "filter in"),
        (lambda: TrainTransform(0, 16), "at least 1"),
        (lambda: SurrogateTransform(mode="some"), "'all' or 'one_of'"),
        (lambda: Views(), "at least one transform"),
    ],
)
def test_rejects(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# in a data set


def make_dataset(folder: Path, trees: SimpleNamespace, transform: object, seed: int = 0) -> ImageDataset:
    names = [f"{i}.png" for i in range(6)]
    trees.touch_images(folder, names, (16, 32))
    records = Records(folder, tuple(names), np.arange(6), np.zeros(6, np.int64))
    return ImageDataset(records, transform, seed=seed)


def read(dataset: ImageDataset, workers: int = 0, **options: object) -> torch.Tensor:
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=workers, **options)
    return torch.cat([images for images, *_ in loader])


def test_pictures_do_not_depend_on_workers(tmp_path: Path, trees: SimpleNamespace) -> None:
    dataset = make_dataset(tmp_path, trees, TrainTransform(32, 16))
    one = read(dataset)
    assert torch.equal(one, read(dataset, 2)) and torch.equal(one, read(dataset))
    dataset.set_epoch(1)
    assert not torch.equal(one, read(dataset))
    dataset.set_epoch(0)
    assert torch.equal(one, read(dataset))
    assert not torch.equal(one, read(make_dataset(tmp_path, trees, TrainTransform(32, 16), seed=1)))


def test_persistent_workers_see_the_epoch(tmp_path: Path, trees: SimpleNamespace) -> None:
    dataset = make_dataset(tmp_path, trees, TrainTransform(32, 16))
    loader = torch.utils.data.DataLoader(dataset, batch_size=6, num_workers=1, persistent_workers=True)
    first = next(iter(loader))[0]
    dataset.set_epoch(5)
    second = next(iter(loader))[0]
    assert not torch.equal(first, second) and torch.equal(second, read(dataset))


def test_copies_of_a_row_differ(tmp_path: Path, trees: SimpleNamespace) -> None:
    dataset = make_dataset(tmp_path, trees, TrainTransform(32, 16, erase=1.0))
    a, b = dataset[2], dataset[2 + 6]
    assert b[1:] == a[1:] == (2, 0, 2) and not torch.equal(a[0], b[0])
    plain = make_dataset(tmp_path, trees, EvalTransform(32, 16))
    for index in (6, -1):
        with pytest.raises(IndexError, match=f"0..5, got {index}"):
            plain[index]


def test_labels(tmp_path: Path, trees: SimpleNamespace) -> None:
    dataset = make_dataset(tmp_path, trees, EvalTransform(32, 16))
    assert ImageDataset(dataset.records, EvalTransform(32, 16), labels=np.arange(6) + 50)[4][1] == 54
    with pytest.raises(ValueError, match=r"labels of shape \(6,\), got \(2,\)"):
        ImageDataset(dataset.records, EvalTransform(32, 16), labels=[1, 2])


def test_views(tmp_path: Path, trees: SimpleNamespace) -> None:
    views = Views(EvalTransform(32, 16), TrainTransform(32, 16, erase=1.0))
    out = make_dataset(tmp_path, trees, pickle.loads(pickle.dumps(views)))[1][0]
    assert out.shape == (2, 3, 32, 16) and not torch.equal(out[0], out[1])


# the same for a batch on a device


def batch(n: int = 64, height: int = 32, width: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


def test_batch_augment_without_change() -> None:
    images = batch()
    assert torch.equal(BatchAugment(0, 0, 0)(images), normalised(images))
    assert torch.equal(BatchAugment(0.5, 4, 0.5).eval()(images), normalised(images))


def test_batch_augment_flip_and_crop() -> None:
    images = batch(400)
    out = BatchAugment(0.5, 2, 0.0)(images, torch.Generator().manual_seed(0))
    counts = np.zeros((2, 5, 5), int)
    for picture, result in zip(images, out, strict=True):
        for flipped in (0, 1):
            source = picture.flip(-1) if flipped else picture
            padded = torch.nn.functional.pad(source, (2, 2, 2, 2))
            for y in range(5):
                for x in range(5):
                    counts[flipped, y, x] += torch.equal(normalised(padded[:, y : y + 32, x : x + 16]), result)
    assert counts.sum() == 400 and (counts.sum(0) > 4).all() and 150 < counts[1].sum() < 250


def test_batch_augment_erasing() -> None:
    images = batch(500)
    out = BatchAugment(0, 0, 0.5)(images, torch.Generator().manual_seed(0))
    changed = (out != normalised(images)).any(1)
    share = changed.float().mean((1, 2))
    assert 0.4 < (share > 0).float().mean() < 0.6
    assert share[share > 0].min() > 0.01 and share.max() < 0.42
    for i in share.nonzero().squeeze(1)[:20].tolist():
        rows, columns = changed[i].any(1).sum(), changed[i].any(0).sum()
        assert rows * columns == changed[i].sum()
        assert torch.allclose(out[i][:, changed[i]].mean(1), torch.tensor(IMAGENET_MEAN))


def test_batch_augment_repeats_and_rejects() -> None:
    images, augment = batch(), BatchAugment()
    one, two = (augment(images, torch.Generator().manual_seed(s)) for s in (4, 4))
    assert torch.equal(one, two) and not torch.equal(one, augment(images, torch.Generator().manual_seed(5)))
    with pytest.raises(ValueError, match=r"uint8 \[B,3,H,W\], got torch.float32"):
        augment(images.float())
    assert list(augment.state_dict()) == []


@pytest.mark.parametrize("pad", [0, 3, 40])  # 40: the window may lie outside the image altogether
@pytest.mark.parametrize("channels_last", [False, True])
def test_batch_augment_gather_equals_loop(pad: int, channels_last: bool) -> None:
    images = batch(80)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    augment = BatchAugment(0.5, pad, 0.7)
    where = augment._draw(images, torch.Generator().manual_seed(2))
    expected = augment._erase(normalised(augment._move(images, where)), where)
    assert torch.equal(augment._one_by_one(images, where), expected)
