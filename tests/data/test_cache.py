# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from reidfast.data import BatchAugment, EvalTransform, ImageCache, ImageDataset, Records, cached, decode


@pytest.fixture
def records(tmp_path: Path) -> Records:
    rng = np.random.default_rng(0)
    names = tuple(f"a/{i}.png" for i in range(9))
    (tmp_path / "images/a").mkdir(parents=True)
    for i, name in enumerate(names):
        Image.fromarray(rng.integers(0, 256, (20 + i, 10, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
    return Records(tmp_path / "images", names, np.arange(9), np.zeros(9, np.int64))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize("workers", [1, 3])
def test_own_sizes(records: Records, folder: Path, workers: int) -> None:
    cache = ImageCache(records, folder=folder, workers=workers)
    assert cache.made and len(cache) == 9 and cache.nbytes == sum((20 + i) * 10 * 3 for i in range(9))
    for i in range(9):
        assert np.array_equal(cache.array(i), np.asarray(decode(records.absolute(i))))
        assert np.array_equal(np.asarray(cache(records, i)), cache.array(i))
    with pytest.raises(ValueError, match="height and width for one array"):
        cache.stacked()


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_one_size(records: Records, folder: Path, filter: str) -> None:
    cache = ImageCache(records, 16, 8, filter=filter, folder=folder)
    how = getattr(Image.Resampling, filter.upper())
    expected = [np.asarray(decode(records.absolute(i)).resize((8, 16), how)) for i in range(9)]
    assert np.array_equal(cache.stacked(), np.stack(expected))
    assert not cache.pixels.flags.writeable


def test_made_once_and_found_again(records: Records, folder: Path) -> None:
    first = ImageCache(records, 16, 8, folder=folder)
    second = ImageCache(records, 16, 8, folder=folder)
    assert first.made and not second.made and second.path == first.path
    assert np.array_equal(first.stacked(), second.stacked())


def test_name_depends_on_everything(records: Records, folder: Path) -> None:
    caches = [
        ImageCache(records, 16, 8, folder=folder),
        ImageCache(records, 16, 10, folder=folder),
        ImageCache(records, folder=folder),
        ImageCache(records, 16, 8, filter="box", folder=folder),
        ImageCache(records.select(slice(1, None)), 16, 8, folder=folder),
        ImageCache(records.select(np.arange(9)[::-1]), 16, 8, folder=folder),
    ]
    assert len({c.path for c in caches}) == 6 and all(c.made for c in caches)


def test_changed_image_makes_a_new_cache(records: Records, folder: Path) -> None:
    first = ImageCache(records, 16, 8, folder=folder)
    Image.new("RGB", (10, 20), (1, 2, 3)).save(records.absolute(0))
    second = ImageCache(records, 16, 8, folder=folder)
    assert second.made and second.path != first.path and (second.array(0) == (1, 2, 3)).all()


@pytest.mark.parametrize("damage", ["short", "long", "no pixels", "no index", "index cut", "sizes changed"])
def test_damaged_cache_is_made_again(records: Records, folder: Path, damage: str) -> None:
    first = ImageCache(records, 16, 8, folder=folder)
    pixels, index = first.path.read_bytes(), first.index_path.read_text()
    {
        "short": lambda: first.path.write_bytes(pixels[:-1]),
        "long": lambda: first.path.write_bytes(pixels + b"\0"),
        "no pixels": first.path.unlink,
        "no index": first.index_path.unlink,
        "index cut": lambda: first.index_path.write_text(index[: len(index) // 2]),
        "sizes changed": lambda: first.index_path.write_text(index.replace("[16, 8]", "[8, 16]", 1)),
    }[damage]()
    again = ImageCache(records, 16, 8, folder=folder)
    assert again.made and again.path.read_bytes() == pixels and again.index_path.read_text() == index


def test_broken_image_leaves_nothing_behind(records: Records, folder: Path) -> None:
    records.absolute(4).write_bytes(records.absolute(4).read_bytes()[:50])
    with pytest.raises(ValueError, match="4.png"):
        ImageCache(records, 16, 8, folder=folder)
    assert list(folder.iterdir()) == []
    records.absolute(4).unlink()
    with pytest.raises(FileNotFoundError, match="no such image: .*4.png"):
        ImageCache(records, 16, 8, folder=folder)


def test_killed_while_it_was_made(records: Records, folder: Path) -> None:
    code = (
        "import os, signal, sys, numpy as np; from pathlib import Path\n"
        "from reidfast.data import ImageCache, Records, decode\n"
        "import reidfast.data.cache as cache\n"
        "def dies(path):\n"
        "    if str(path).endswith('7.png'):\n"
        "        import time; time.sleep(0.3); os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return decode(path)\n"
        "cache.decode = dies\n"
        f"r = Records(Path({str(records.root)!r}), {records.paths!r}, np.arange(9), np.zeros(9, np.int64))\n"
        f"ImageCache(r, 16, 8, folder={str(folder)!r}, workers=1)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    assert [p.suffix for p in folder.iterdir()] == [".tmp"]
    cache = ImageCache(records, 16, 8, folder=folder)
    assert cache.made and sorted(p.suffix for p in folder.iterdir()) == [".json", ".u8"]
    assert np.array_equal(cache.array(8), np.asarray(EvalResize()(decode(records.absolute(8)))))


class EvalResize:
    def __call__(self, image: Image.Image) -> Image.Image:
        return image.resize((8, 16), Image.Resampling.BILINEAR)


def test_no_space(records: Records, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="ImageCache: No space left on device after .* bytes in"):
        ImageCache(records, 16, 8, folder=folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_dataset(records: Records, folder: Path, workers: int) -> None:
    cache = pickle.loads(pickle.dumps(ImageCache(records, 16, 8, folder=folder)))
    some = records.select([5, 2, 8])
    plain, fast = (ImageDataset(some, EvalTransform(16, 8), decode=d) for d in (None, cache))
    a, b = (torch.cat([x[0] for x in torch.utils.data.DataLoader(d, 2, num_workers=workers)]) for d in (plain, fast))
    assert torch.equal(a, b)
    other = Records(records.root, ("a/9.png",), [1], [1])
    with pytest.raises(KeyError, match="one of the 9 cached images, got .*9.png"):
        cache(other, 0)


def test_batches_without_a_loader(records: Records, folder: Path) -> None:
    cache = ImageCache(records, 16, 8, folder=folder)
    some = records.select([7, 0, 3])
    rows = cache.rows(some)
    assert rows.tolist() == [7, 0, 3]
    images = BatchAugment().eval()(cache.batch(rows))
    assert images.shape == (3, 3, 16, 8)
    for i in range(3):
        assert torch.allclose(images[i], EvalTransform(16, 8)(decode(some.absolute(i))), atol=1e-6)
    cache.batch(rows).zero_()  # a copy: the cache stays as it is
    assert cache.stacked()[7].any()


def test_random_transform_does_not_write_into_the_cache(records: Records, folder: Path) -> None:
    from reidfast.data import TrainTransform

    cache = ImageCache(records, 16, 8, folder=folder)
    before = cache.path.read_bytes()
    dataset = ImageDataset(records, TrainTransform(16, 8, erase=1.0), decode=cache)
    for i in range(9):
        dataset[i]
    assert cache.path.read_bytes() == before


def test_several_tables(tmp_path: Path, trees: SimpleNamespace, folder: Path) -> None:
    from reidfast.data import load_dataset

    root = trees.market(tmp_path / "market1501")
    with pytest.warns(UserWarning, match="as published"):
        data = load_dataset("market1501", root)
    cache = cached(list(data.splits.values()), 16, 8, folder=folder)
    assert len(cache) == 10
    for table in data.splits.values():
        for i in range(len(table)):
            assert np.array_equal(np.asarray(cache(table, i)), np.asarray(EvalResize()(decode(table.absolute(i)))))


def test_default_folder_and_removal(records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REIDFAST_CACHE", str(tmp_path / "elsewhere"))
    cache = ImageCache(records)
    assert cache.path.parent == tmp_path / "elsewhere/images"
    cache.remove()
    assert list(cache.path.parent.iterdir()) == []


@pytest.mark.parametrize("arguments", [(16, None), (16, 8, "best")])
def test_rejects(records: Records, folder: Path, arguments: tuple) -> None:
    options = {"filter": arguments[2]} if len(arguments) == 3 else {}
    with pytest.raises(ValueError, match="ImageCache: expected (both height|filter)"):
        ImageCache(records, *arguments[:2], folder=folder, **options)
