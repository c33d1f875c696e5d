# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Features of every image of a data set, into one file, at any moment interruptible.

The rows are divided into shards of a fixed size. Each finished shard is put, whole, into the folder `<out>.parts` next
to the result; when all are there the result is written in one step and the folder removed. Whoever kills the process,
at any moment, loses at most the shard in progress: the same call again takes what is there and ends with the same file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reidfast._files import write_whole
from reidfast.data import Records, ReidData
from reidfast.data.images import FILTERS, decode, normalize, resize

from .features import FeatureFile, FeatureFileError, FeatureTable, check_name, read_features, write_features
from .progress import progress

__all__ = ["extract", "pick_device"]

DTYPES = ("float16", "float32")


def extract(
    model: nn.Module,
    records: Records | ReidData | Mapping[str, Records],
    out: str | os.PathLike[str] | None = None,
    *,
    size: tuple[int, int] = (256, 128),
    filter: str = "bilinear",
    batch: int = 64,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    flip: bool = False,
    workers: int | None = None,
    shard: int = 512,
    meta: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
) -> FeatureFile:
    """Run `model` over every image and keep the features.

    Args:
        model: From normalised images `[B, 3, H, W]` to features `[B, D]`; put into evaluation mode, and back after.
        records: A table (taken as the gallery), a data set (its query and gallery), or tables by split name.
        out: The file to write, `.npz` or `.safetensors`; None keeps the features in memory only (not resumable).
        size: (height, width) that the network is given.
        filter: Resize filter: `bilinear` (default), `bicubic`, `box`, `hamming`, `lanczos`, `nearest`.
        batch: Images that go through the network at a time. Part of the settings: sums round differently otherwise.
        device: `cpu`, `cuda`, `cuda:1` ..., or `auto`: a GPU where there is one.
        dtype: Type of the features in the file, `float32` or `float16`.
        flip: Add the feature of the mirrored image to each feature, and halve.
        workers: Threads that decode images; None: one a core, at most 8.
        shard: Rows of a shard, rounded up to whole batches.
        meta: Kept in the file (names of model and data set, for example).
        overwrite: Replace an `out` that was made with other settings; without it that is an error.
        show_progress: A bar, or lines where stderr is no terminal.

    Returns:
        The features, as they stand in the file. Where `out` is there already and was made with the same settings,
        weights and images, nothing is computed.

    Raises:
        ValueError: No images; an unreadable image, a feature that is NaN or infinite (naming the image); bad options.
        FileNotFoundError: An image that is not there, or a folder for `out` that does not exist.
        FileExistsError: `out` exists and was made with other settings.
    """
    tables = _tables(records)
    total = sum(len(table) for table in tables.values())
    height, width = _check_options(size, filter, batch, dtype, shard, total)
    shard = -(-shard // batch) * batch
    device = pick_device(device)
    settings = {
        "size": [height, width],
        "filter": filter,
        "batch": batch,
        "dtype": dtype,
        "flip": flip,
        "device": device.type,
        "shard": shard,
        "images": _digest_images(tables),
        "weights": _digest_weights(model),
    }
    whole_meta = {**(meta or {}), "settings": settings}
    parts = None
    if out is not None:
        out = Path(out)
        check_name(out)
        if not out.parent.is_dir():
            raise FileNotFoundError(f"extract: the folder {out.parent} of the output does not exist; make it first")
        parts = out.with_name(out.name + ".parts")
        if out.exists():
            present = _finished(out, settings, overwrite)
            if present is not None:
                shutil.rmtree(parts, ignore_errors=True)
                return present
        _prepare_parts(parts, settings)

    shards = [
        (name, start, min(start + shard, len(table)))
        for name, table in tables.items()
        for start in range(0, len(table), shard)
    ]
    made: dict[int, NDArray[Any]] = {}
    if parts is not None:
        made = {i: array for i in range(len(shards)) if (array := _read_shard(parts, i, shards[i], dtype)) is not None}
    done = sum(len(array) for array in made.values())
    training = model.training
    placed = model.to(device).eval()
    workers = min(os.cpu_count() or 1, 8) if workers is None else workers
    try:
        with (
            ThreadPoolExecutor(max(workers, 1)) as pool,
            progress(total, "extract", done=done, show=show_progress) as advance,
        ):
            todo = [i for i in range(len(shards)) if i not in made]
            batches = ((i, row, rows) for i in todo for row, rows in _batches(tables, shards[i], batch))
            rows_of: list[NDArray[Any]] = []
            for i, (name, start, stop), images in _decoded(pool, tables, batches, (height, width), filter):
                rows_of.append(_features(placed, images, device, dtype, flip))
                _check_rows(rows_of[-1], tables[name], start)
                advance(stop - start)
                if stop == shards[i][2]:
                    made[i] = np.concatenate(rows_of)
                    rows_of = []
                    if parts is not None:
                        with write_whole(_shard_path(parts, i)) as stream:
                            np.save(stream, made[i])
    finally:
        model.train(training)
    file = FeatureFile({name: _table(name, table, shards, made) for name, table in tables.items()}, whole_meta)
    if out is not None and parts is not None:
        write_features(out, file)
        shutil.rmtree(parts, ignore_errors=True)
    return file


def pick_device(device: str | torch.device) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one. ValueError where it cannot be used."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        picked = None
    if picked is None or picked.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {str(device)!r}")
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {device} was asked for, but torch {torch.__version__} finds no CUDA device; use cpu")
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {device} was asked for, but there are only {torch.cuda.device_count()} CUDA devices")
    return picked


def _tables(records: Records | ReidData | Mapping[str, Records]) -> dict[str, Records]:
    if isinstance(records, Records):
        return {"gallery": records}
    if isinstance(records, ReidData):
        return {"query": records.query, "gallery": records.gallery}
    return dict(records)


def _check_options(
    size: tuple[int, int], filter: str, batch: int, dtype: str, shard: int, total: int
) -> tuple[int, int]:
    if total == 0:
        raise ValueError("extract: expected at least one image, got none")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"extract: expected size (height, width) of at least 1 x 1, got {size}")
    if filter not in FILTERS:
        raise ValueError(f"extract: expected filter in {', '.join(FILTERS)}, got {filter!r}")
    if batch < 1 or shard < 1:
        raise ValueError(f"extract: expected batch and shard of at least 1, got {batch} and {shard}")
    if dtype not in DTYPES:
        raise ValueError(f"extract: expected dtype in {', '.join(DTYPES)}, got {dtype!r}")
    return int(size[0]), int(size[1])


def _digest_images(tables: Mapping[str, Records]) -> str:
    """SHA-256 of what makes the rows: names, identities, cameras and file sizes, in order."""
    digest = hashlib.sha256()
    for name, table in tables.items():
        digest.update(f"{name} {len(table)}\n".encode())
        for i, path in enumerate(table.paths):
            try:
                length = os.stat(table.absolute(i)).st_size
            except FileNotFoundError:
                raise FileNotFoundError(f"extract: no such image: {table.absolute(i)}") from None
            digest.update(f"{path}\n{length} {table.pids[i]} {table.camids[i]}\n".encode())
    return digest.hexdigest()


def _digest_weights(model: nn.Module) -> str:
    digest = hashlib.sha256(type(model).__qualname__.encode())
    for name, tensor in model.state_dict().items():
        raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def _finished(out: Path, settings: dict[str, Any], overwrite: bool) -> FeatureFile | None:
    """The file that is there, where it is the one asked for; None where it is to be replaced."""
    try:
        present = read_features(out)
    except FeatureFileError:
        if overwrite:
            return None
        raise FileExistsError(
            f"extract: {out} exists and is no whole feature file; remove it or ask for it to be overwritten"
        ) from None
    if present.meta.get("settings") == settings:
        return present
    if overwrite:
        return None
    found = present.meta.get("settings") or {}
    differing = [key for key in settings if found.get(key) != settings[key]]
    raise FileExistsError(
        f"extract: {out} exists and was made with other {', '.join(differing)}; "
        "give another name or ask for it to be overwritten"
    )


def _prepare_parts(parts: Path, settings: dict[str, Any]) -> None:
    """Keep the shards of an interrupted run with the same settings; throw away those of any other."""
    plan = parts / "settings.json"
    try:
        if json.loads(plan.read_text()) == settings:
            return
    except (OSError, ValueError):
        pass
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    with write_whole(plan) as stream:
        stream.write(json.dumps(settings, indent=1).encode())


def _shard_path(parts: Path, index: int) -> Path:
    return parts / f"{index:06d}.npy"


def _read_shard(parts: Path, index: int, shard: tuple[str, int, int], dtype: str) -> NDArray[Any] | None:
    path = _shard_path(parts, index)
    if not path.exists():
        return None
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.ndim == 2 and len(array) == shard[2] - shard[1] and array.dtype == dtype else None


def _batches(
    tables: Mapping[str, Records], shard: tuple[str, int, int], batch: int
) -> Iterator[tuple[tuple[str, int, int], list[Path]]]:
    name, start, stop = shard
    for row in range(start, stop, batch):
        end = min(row + batch, stop)
        yield (name, row, end), [tables[name].absolute(i) for i in range(row, end)]


def _decoded(
    pool: ThreadPoolExecutor,
    tables: Mapping[str, Records],
    batches: Iterator[tuple[int, tuple[str, int, int], list[Path]]],
    size: tuple[int, int],
    filter: str,
) -> Iterator[tuple[int, tuple[str, int, int], Tensor]]:
    """Batches `[B, H, W, 3]` uint8 in order, two of them decoded ahead of the one in work."""

    def pixels(path: Path) -> NDArray[np.uint8]:
        return np.asarray(resize(decode(path), *size, filter), np.uint8)

    ahead: list[tuple[int, tuple[str, int, int], list[Future[NDArray[np.uint8]]]]] = []
    more = True
    try:
        while ahead or more:
            while more and len(ahead) < 3:
                item = next(batches, None)
                more = item is not None
                if item is not None:
                    ahead.append((item[0], item[1], [pool.submit(pixels, path) for path in item[2]]))
            if not ahead:
                return
            i, rows, futures = ahead.pop(0)
            yield i, rows, torch.from_numpy(np.stack([future.result() for future in futures]))
    finally:
        for _, _, futures in ahead:
            for future in futures:
                future.cancel()


@torch.inference_mode()
def _features(model: nn.Module, images: Tensor, device: torch.device, dtype: str, flip: bool) -> NDArray[Any]:
    x = images.to(device).permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)
    x = normalize(x) if device.type == "cpu" else _normalize_on(x)
    first = next(model.parameters(), None)
    x = x.double() if first is not None and first.dtype == torch.float64 else x
    found = _one_feature(model(x), len(x))
    if flip:
        found = (found + _one_feature(model(x.flip(3)), len(x))) / 2
    return found.to(getattr(torch, dtype)).cpu().numpy()


def _normalize_on(x: Tensor) -> Tensor:
    """`normalize`, with its constants on the tensor's device."""
    from reidfast.data.images import IMAGENET_MEAN, IMAGENET_STD

    mean, std = (torch.tensor(v, device=x.device).view(-1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return x.sub_(mean).div_(std)


def _one_feature(result: Any, rows: int) -> Tensor:
    if not isinstance(result, Tensor):
        raise TypeError(f"extract: expected a model that returns one feature tensor, got {type(result).__name__}")
    result = result.flatten(1) if result.dim() > 2 and result.shape[2:].numel() == 1 else result
    if result.dim() != 2 or len(result) != rows:
        raise ValueError(f"extract: expected features of shape ({rows}, D) from the model, got {tuple(result.shape)}")
    return result


def _check_rows(rows: NDArray[Any], table: Records, start: int) -> None:
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        where = table.absolute(start + int(bad[0]))
        raise ValueError(f"extract: the feature of {where} is NaN or infinite in {rows.dtype}; check the weights")


def _table(
    name: str, table: Records, shards: list[tuple[str, int, int]], made: Mapping[int, NDArray[Any]]
) -> FeatureTable:
    rows = [made[i] for i, shard in enumerate(shards) if shard[0] == name]
    width = next(iter(made.values())).shape[1]
    dtype = next(iter(made.values())).dtype
    features = np.concatenate(rows) if rows else np.empty((0, width), dtype)
    return FeatureTable(features, table.pids, table.camids, table.paths)
