# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Tiny made-up copies of each published layout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image


def touch_images(folder: Path, names: Iterable[str], size: tuple[int, int] = (8, 16)) -> None:
    """One-colour pictures, each of another colour."""
    for i, name in enumerate(names):
        at = folder / name
        at.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (17 * i % 256, 40, 255 - 11 * i % 256)).save(at)


def market(folder: Path, parts: Iterable[str] = ("bounding_box_train", "query", "bounding_box_test")) -> Path:
    names = {
        "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0002_c2s1_000500_01.jpg", "0007_c3s2_000001_01.jpg"],
        "query": ["0001_c1s1_001051_00.jpg", "0003_c2s3_000002_00.jpg"],
        "bounding_box_test": [
            "-1_c1s1_000401_03.jpg",
            "0000_c5s1_000401_03.jpg",
            "0001_c2s1_000301_01.jpg",
            "0001_c6s4_012345_02.jpg",
            "0003_c1s1_000001_01.jpg",
        ],
    }
    for part in parts:
        touch_images(folder / part, names[part])
        (folder / part / "Thumbs.db").write_bytes(b"not an image")
    return folder


CUHK03_FILES = ["1_001_1_01", "1_001_2_06", "1_002_1_01", "1_002_2_06", "1_002_2_07", "2_001_1_01"]


def cuhk03(folder: Path, boxes: str = "detected", suffix: str = ".png", images: str | None = None) -> Path:
    from scipy.io import savemat

    touch_images(folder / (images or f"images_{boxes}"), [n + suffix for n in CUHK03_FILES])
    files = np.empty((len(CUHK03_FILES), 1), object)
    files[:, 0] = [n + ".png" for n in CUHK03_FILES]
    savemat(
        folder / f"cuhk03_new_protocol_config_{boxes}.mat",
        {
            "filelist": files,
            "labels": np.array([[1], [1], [2], [2], [2], [3]], np.uint16),
            "camId": np.array([[1], [2], [1], [2], [2], [1]], np.uint8),
            "train_idx": np.array([[1], [2], [6]], np.uint16),
            "query_idx": np.array([[3]], np.uint16),
            "gallery_idx": np.array([[4], [5]], np.uint16),
        },
    )
    return folder


def msmt17(folder: Path, version: str = "V1") -> Path:
    train, test = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}[version]
    lists = {
        "train": (train, ["0000/0000_000_01_0303morning_0015_0.jpg 0", "0001/0001_000_14_0303noon_0015_1.jpg 1"]),
        "val": (train, ["0001/0001_003_02_0303noon_0015_1.jpg 1"]),
        "query": (test, ["0000/0000_000_01_0113morning_0015_0.jpg 0"]),
        "gallery": (test, ["0000/0000_001_15_0113morning_0015_0.jpg 0", "0001/0001_001_07_0113morning_0015_0.jpg 1"]),
    }
    for split, (images, lines) in lists.items():
        touch_images(folder / images, [line.split()[0] for line in lines])
        (folder / f"list_{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def trees() -> SimpleNamespace:
    """The makers above; a fixture, so that tests need not import a file beside them."""
    return SimpleNamespace(touch_images=touch_images, market=market, cuhk03=cuhk03, msmt17=msmt17)
