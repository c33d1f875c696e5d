# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from reidfast.data import EvalTransform, ImageDataset, Records, decode
from reidfast.data.images import IMAGENET_MEAN, IMAGENET_STD


def picture(width: int = 12, height: int = 20, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "nearest"])
def test_eval_transform_is_resize_then_normalise(filter: str) -> None:
    image = picture()
    out = EvalTransform(32, 16, filter)(image)
    small = np.asarray(image.resize((16, 32), getattr(Image.Resampling, filter.upper())), np.float64) / 255
    expected = (small - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert out.shape == (3, 32, 16) and out.dtype == torch.float32
    np.testing.assert_allclose(out.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_right_size_is_not_resampled() -> None:
    image = picture(16, 32)
    kept = EvalTransform(32, 16)(image) * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(
        3, 1, 1
    )
    assert torch.equal((kept * 255).round().permute(1, 2, 0).byte(), torch.from_numpy(np.array(image)))


@pytest.mark.parametrize(
    "arguments,words", [((0, 16), "at least 1, got 0 x 16"), ((8, 8, "best"), "filter in .*, got 'best'")]
)
def test_eval_transform_rejects(arguments: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EvalTransform(*arguments)


def test_transform_pickles_and_prints() -> None:
    transform = EvalTransform(24, 12, "bicubic")
    again = pickle.loads(pickle.dumps(transform))
    assert repr(again) == "EvalTransform(height=24, width=12, filter='bicubic')"
    assert torch.equal(again(picture()), transform(picture()))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    at = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    (Image.new("I;16", (4, 6), 300) if mode == "I;16" else picture(4, 6).convert(mode)).save(at)
    image = decode(at)
    assert image.mode == "RGB" and image.size == (4, 6)


@pytest.mark.parametrize("workers", [0, 2])
def test_dataset_through_a_loader(tmp_path: Path, trees: SimpleNamespace, workers: int) -> None:
    names = [f"{i}.png" for i in range(5)]
    trees.touch_images(tmp_path, names)
    records = Records(tmp_path, tuple(names), np.arange(5) + 40, np.arange(5) % 2)
    loader = torch.utils.data.DataLoader(ImageDataset(records, EvalTransform(16, 8)), batch_size=3, num_workers=workers)
    images, pids, camids, rows = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert images.shape == (5, 3, 16, 8)
    assert (
        pids.tolist() == [40, 41, 42, 43, 44] and camids.tolist() == [0, 1, 0, 1, 0] and rows.tolist() == list(range(5))
    )
    assert torch.equal(images[3], EvalTransform(16, 8)(decode(tmp_path / "3.png")))


@pytest.mark.parametrize("kind", ["text", "empty", "cut off", "folder", "absent"])
def test_broken_files_are_named(tmp_path: Path, kind: str) -> None:
    at = tmp_path / "broken.jpg"
    if kind == "text":
        at.write_text("no picture")
    elif kind == "empty":
        at.write_bytes(b"")
    elif kind == "cut off":
        picture(64, 128).save(at)
        at.write_bytes(at.read_bytes()[:900])
    elif kind == "folder":
        at.mkdir()
    dataset = ImageDataset(Records(tmp_path, ("broken.jpg",), [1], [1]), EvalTransform(16, 8))
    error = FileNotFoundError if kind == "absent" else ValueError
    with pytest.raises(error, match="broken.jpg") as raised:
        dataset[0]
    assert "\n" not in str(raised.value)


def test_a_decoder_can_be_given(tmp_path: Path) -> None:
    dataset = ImageDataset(Records(tmp_path, ("x",), [1], [2]), np.asarray, decode=lambda records, i: picture(seed=i))
    assert np.array_equal(dataset[0][0], np.asarray(picture())) and dataset[0][1:] == (1, 2, 0)


def test_real_images_decode(reidfast_data: Path) -> None:
    from reidfast.data import load_dataset

    for name in ("market751_mini", "cuhk03_np_detected", "pets09_reentry"):
        image, pid, camid, index = ImageDataset(load_dataset(name, reidfast_data).gallery, EvalTransform(256, 128))[7]
        assert image.shape == (3, 256, 128) and image.isfinite().all() and index == 7
