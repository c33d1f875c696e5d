# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Decoded images in one memory-mapped file, so that an epoch costs no JPEG decoding after the first."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from reidfast.data.images import FILTERS, decode, resize
from reidfast.data.records import Records
from reidfast.data.registry import cache_folder

VERSION = 1


def list_hash(records: Records, height: int | None, width: int | None, filter: str) -> str:
    """Names the content of a cache: the paths in order, the size and time of each file, and what is done to them."""
    digest = hashlib.sha256(f"{VERSION} {height} {width} {filter if height else ''} {len(records)}\n".encode())
    for i, path in enumerate(records.paths):
        try:
            status = records.absolute(i).stat()
        except FileNotFoundError:
            raise FileNotFoundError(f"ImageCache: no such image: {records.absolute(i)}") from None
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


class ImageCache:
    """The decoded images of a table, uint8 RGB, in a file that is made once.

    `ImageDataset(records, transform, decode=cache)` reads from it; the table may be any selection of the cached one.
    The file is called after `list_hash`, so it is found again for the same images and never taken for others, and
    appears under that name when it is whole (temporary name, flushed to disk, renamed). What is found is checked: its
    size, and the table of sizes by checksum. Several processes may ask for the same cache at once: each gets a whole
    one (the last to finish is kept; all are equal).

    Args:
        records: The images.
        height: Resize to this height once, when the cache is made; None keeps every image's own size.
        width: Likewise.
        filter: Resize filter.
        folder: Where caches are kept; default `cache_folder() / "images"`.
        workers: Threads that decode.
        progress: Called with (done, total) now and then while the cache is made.

    Raises:
        FileNotFoundError: An image is missing.
        ValueError: An image is broken; the message names it. Nothing is left behind.
        OSError: The file does not fit on the disk; the message says how large it would be.
    """

    def __init__(
        self,
        records: Records,
        height: int | None = None,
        width: int | None = None,
        *,
        filter: str = "bilinear",
        folder: str | os.PathLike[str] | None = None,
        workers: int = 2,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if (height is None) != (width is None):
            raise ValueError(f"ImageCache: expected both height and width or neither, got {height} x {width}")
        if filter not in FILTERS:
            raise ValueError(f"ImageCache: expected filter in {', '.join(FILTERS)}, got {filter!r}")
        self.height, self.width, self.filter = height, width, filter
        self.folder = Path(folder).expanduser() if folder is not None else cache_folder() / "images"
        key = list_hash(records, height, width, filter)
        self.path, self.index_path = self.folder / f"{key}.u8", self.folder / f"{key}.json"
        self.made = False
        sizes = self._load(len(records))
        if sizes is None:
            sizes = self._make(records, workers, progress)
            self.made = True
        self.sizes: NDArray[np.int64] = sizes
        self.offsets = np.concatenate([[0], np.cumsum(sizes.prod(1) * 3)]).astype(np.int64)
        self._rows = {os.fspath(records.absolute(i)): i for i in range(len(records))}
        self._pixels: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        """Size of the pixels on disk."""
        return int(self.offsets[-1])

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The file, mapped read-only; opened by each process for itself."""
        if self._pixels is None:
            self._pixels = np.memmap(self.path, np.uint8, "r") if self.nbytes else np.empty(0, np.uint8)
        return self._pixels

    def array(self, row: int) -> NDArray[np.uint8]:
        """Image `row` of the cached table, [h,w,3], without a copy."""
        h, w = self.sizes[row]
        return self.pixels[self.offsets[row] : self.offsets[row + 1]].reshape(h, w, 3)

    def stacked(self) -> NDArray[np.uint8]:
        """All images, [n,h,w,3], without a copy; for a cache made with height and width."""
        if self.height is None or self.width is None:
            raise ValueError("ImageCache: expected height and width for one array of all images, got own sizes")
        return self.pixels.reshape(len(self), self.height, self.width, 3)

    def row(self, records: Records, index: int) -> int:
        """Where row `index` of a table is in the cache; KeyError where it is not."""
        path = os.fspath(records.absolute(index))
        row = self._rows.get(path)
        if row is None:
            raise KeyError(f"ImageCache: expected one of the {len(self):,} cached images, got {path}")
        return row

    def rows(self, records: Records) -> NDArray[np.int64]:
        """`row` of every row of a table."""
        return np.array([self.row(records, i) for i in range(len(records))], np.int64)

    def batch(self, rows: ArrayLike) -> Tensor:
        """Images of the cached table, uint8 [B,3,h,w] (channels last in memory): what `BatchAugment` takes."""
        return torch.from_numpy(self.stacked()[np.asarray(rows, np.int64)]).permute(0, 3, 1, 2)

    def __call__(self, records: Records, index: int) -> Image.Image:
        """The picture of row `index` of a table; KeyError where it is not cached. The `decode` of `ImageDataset`."""
        return Image.fromarray(self.array(self.row(records, index)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}

    def remove(self) -> None:
        """Deletes the files of this cache."""
        self._pixels = None
        for path in (self.index_path, self.path):
            path.unlink(missing_ok=True)

    def _load(self, n: int) -> NDArray[np.int64] | None:
        """The sizes of the cached images, or None where there is no whole cache."""
        try:
            index = json.loads(self.index_path.read_text(encoding="utf-8"))
            sizes = np.array(index["sizes"], np.int64).reshape(-1, 2)
            whole = index["checksum"] == _checksum(sizes) and len(sizes) == n
            if whole and self.path.stat().st_size == int(sizes.prod(1).sum()) * 3:
                return sizes
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
        return None

    def _make(self, records: Records, workers: int, progress: Callable[[int, int], None] | None) -> NDArray[np.int64]:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        n = len(records)
        sizes = np.empty((n, 2), np.int64)
        temporary = self.path.with_name(f"{self.path.stem}.{os.getpid()}.{threading.get_ident()}.tmp")

        def load(i: int) -> NDArray[np.uint8]:
            image = decode(records.absolute(i))
            if self.height is not None and self.width is not None:
                image = resize(image, self.height, self.width, self.filter)
            return np.asarray(image)

        try:
            with open(temporary, "wb") as file, ThreadPoolExecutor(max(1, workers)) as pool:
                step = 64 * max(1, workers)  # bounds what waits in memory
                for start in range(0, n, step):
                    for i, pixels in zip(
                        range(start, min(start + step, n)),
                        pool.map(load, range(start, min(start + step, n))),
                        strict=True,
                    ):
                        sizes[i] = pixels.shape[:2]
                        file.write(pixels.tobytes())
                    if progress:
                        progress(min(start + step, n), n)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            index = {"version": VERSION, "sizes": sizes.tolist(), "checksum": _checksum(sizes)}
            temporary.write_text(json.dumps(index), encoding="utf-8")
            os.replace(temporary, self.index_path)
        except OSError as error:
            if error.filename is None and error.errno is not None:  # no space, not a missing image
                written = temporary.stat().st_size if temporary.exists() else 0
                raise OSError(
                    error.errno, f"ImageCache: {os.strerror(error.errno)} after {written:,} bytes in {self.folder}"
                ) from None
            raise
        finally:
            temporary.unlink(missing_ok=True)
        return sizes

    def _sweep(self) -> None:
        """Removes what killed processes of this machine left of this cache."""
        for left in self.folder.glob(f"{self.path.stem}.*.tmp"):
            with contextlib.suppress(ValueError, IndexError, OSError):
                pid = int(left.name.split(".")[1])
                if pid != os.getpid() and not _alive(pid):
                    left.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _checksum(sizes: NDArray[np.int64]) -> str:
    return hashlib.sha256(np.ascontiguousarray(sizes, "<i8").tobytes()).hexdigest()


def cached(
    tables: Sequence[Records], height: int | None = None, width: int | None = None, **options: Any
) -> ImageCache:
    """One cache for several tables (train, query and gallery of a set); see `ImageCache`."""
    from reidfast.data.records import concatenate

    return ImageCache(concatenate([t for t in tables if len(t)], offset=False), height, width, **options)
