# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Feature files: features with the identity, camera and path of every row.

One file holds the columns `features [N, D]`, `pids [N]`, `camids [N]`, `paths [N]` and `split [N]` ("train", "query" or
"gallery"), and a JSON text `meta` that says how they were made. As `.npz` these are plain arrays, readable with numpy
alone and without pickle; as `.safetensors` the texts are kept as UTF-8 bytes.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reidfast._files import write_whole

__all__ = ["FeatureFile", "FeatureFileError", "FeatureTable", "read_features", "write_features"]

SPLITS = ("train", "query", "gallery")
SUFFIXES = (".npz", ".safetensors")
FORMAT = "reidfast-features-1"
COLUMNS = ("features", "pids", "camids", "paths", "split")


class FeatureFileError(ValueError):
    """A file that is no feature file, is cut short, or whose columns do not agree."""


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of some images.

    Args:
        features: (n, D), float16, float32 or float64, as the network gave them (not normalised).
        pids: (n,), int64.
        camids: (n,), int64.
        paths: Path of each image relative to the data set's folder, or empty where the file names none.
    """

    features: NDArray[Any]
    pids: NDArray[np.int64]
    camids: NDArray[np.int64]
    paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "features", np.asarray(self.features))
        set_(self, "paths", tuple(self.paths))
        if self.features.ndim != 2:
            raise FeatureFileError(f"features: expected features of shape (n, D), got {self.features.shape}")
        if self.features.dtype.kind != "f":
            raise FeatureFileError(f"features: expected floating-point features, got {self.features.dtype}")
        n = len(self.features)
        for name in ("pids", "camids"):
            column = np.asarray(getattr(self, name))
            if column.shape != (n,):
                raise FeatureFileError(f"features: expected {name} of shape ({n},) to match, got {column.shape}")
            if column.size and column.dtype.kind not in "iu":
                raise FeatureFileError(f"features: expected integer {name}, got {column.dtype}")
            set_(self, name, column.astype(np.int64))
        if self.paths and len(self.paths) != n:
            raise FeatureFileError(f"features: expected {n} paths to match the features, got {len(self.paths)}")

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, eq=False)
class FeatureFile:
    """Features of a data set, by split.

    Args:
        splits: "train", "query", "gallery": those that there are.
        meta: How the features were made (model, weights, size, filter, root of the images ...).
    """

    splits: Mapping[str, FeatureTable]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [name for name in self.splits if name not in SPLITS]
        if unknown or not self.splits:
            raise FeatureFileError(f"features: expected splits among {', '.join(SPLITS)}, got {unknown or 'none'}")
        sizes = {name: table.features.shape[1] for name, table in self.splits.items()}
        if len(set(sizes.values())) > 1:
            raise FeatureFileError(f"features: expected one feature size D in every split, got {sizes}")

    def __getitem__(self, split: str) -> FeatureTable:
        if split not in self.splits:
            have = ", ".join(self.splits)
            raise FeatureFileError(f"features: expected a file with a {split!r} split, this one has only {have}")
        return self.splits[split]

    @property
    def query(self) -> FeatureTable:
        """What is searched for."""
        return self["query"]

    @property
    def gallery(self) -> FeatureTable:
        """Where it is searched."""
        return self["gallery"]

    def __len__(self) -> int:
        return sum(len(table) for table in self.splits.values())


def write_features(path: str | os.PathLike[str], file: FeatureFile) -> None:
    """Write a feature file, `.npz` or `.safetensors`; it appears whole or not at all, with the same bytes every time.

    Raises:
        FeatureFileError: Another ending.
        FileNotFoundError: The folder does not exist.
    """
    path = Path(path)
    check_name(path)
    tables = [(name, file.splits[name]) for name in SPLITS if name in file.splits]
    with_paths = all(table.paths or not len(table) for _, table in tables)
    columns: dict[str, NDArray[Any]] = {
        "features": np.concatenate([table.features for _, table in tables]),
        "pids": np.concatenate([table.pids for _, table in tables]),
        "camids": np.concatenate([table.camids for _, table in tables]),
        "split": np.concatenate([np.full(len(table), name, "<U7") for name, table in tables]),
    }
    if with_paths:
        columns["paths"] = np.array([p for _, table in tables for p in table.paths], dtype=np.str_).reshape(-1)
    meta = json.dumps({**file.meta, "format": FORMAT, "splits": [name for name, _ in tables]}, sort_keys=True)
    with write_whole(path) as stream:
        if path.suffix == ".npz":
            np.savez(stream, **columns, meta=np.array(meta))  # type: ignore[arg-type]
        else:
            stream.write(_to_safetensors(columns, meta))


def read_features(path: str | os.PathLike[str]) -> FeatureFile:
    """Read a feature file.

    Also reads `.npz` files that hold `query`, `query_pid`, `query_cam` and the same for `gallery` (and `train`).

    Raises:
        FileNotFoundError: No such file.
        FeatureFileError: Not a feature file, cut short, or columns that do not agree; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"features: expected a feature file, but {path} {what}")
    check_name(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                columns = {key: arrays[key] for key in arrays.files}
            meta_text = str(columns.pop("meta", "{}"))
        else:
            columns, meta_text = _from_safetensors(path)
        meta = json.loads(meta_text)
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:120].rstrip(".")
        raise FeatureFileError(
            f"features: {path} is not a feature file, or is damaged or cut short ({said})"
        ) from error
    try:
        return _assemble(columns, meta)
    except FeatureFileError as error:
        raise FeatureFileError(f"{error} (in {path})") from None


def check_name(path: Path) -> None:
    """FeatureFileError unless the name ends as a feature file's does."""
    if path.suffix not in SUFFIXES:
        raise FeatureFileError(f"features: expected a name ending in {' or '.join(SUFFIXES)}, got {path.name}")


def _assemble(columns: dict[str, NDArray[Any]], meta: dict[str, Any]) -> FeatureFile:
    if "features" not in columns and "query" in columns:
        return _assemble_by_split(columns, meta)
    lacking = [name for name in ("features", "pids", "camids") if name not in columns]
    if lacking:
        found = ", ".join(sorted(columns)) or "nothing"
        raise FeatureFileError(f"features: expected the columns {', '.join(lacking)}, found {found}")
    whole = FeatureTable(
        columns["features"], columns["pids"], columns["camids"], tuple(map(str, columns.get("paths", ())))
    )
    split = columns.get("split")
    if split is None:
        return FeatureFile({"gallery": whole}, meta)
    if split.shape != (len(whole),):
        raise FeatureFileError(f"features: expected split of shape ({len(whole)},), got {split.shape}")
    names = list(meta.get("splits", ())) + [str(name) for name in np.unique(split)]
    splits = {}
    for name in dict.fromkeys(names):
        rows = np.flatnonzero(split == name)
        picked: Any = slice(rows[0], rows[-1] + 1) if len(rows) and rows[-1] - rows[0] == len(rows) - 1 else rows
        paths = tuple(whole.paths[i] for i in rows) if whole.paths else ()
        splits[name] = FeatureTable(whole.features[picked], whole.pids[picked], whole.camids[picked], paths)
    return FeatureFile(splits, meta)


def _assemble_by_split(columns: dict[str, NDArray[Any]], meta: dict[str, Any]) -> FeatureFile:
    splits = {}
    for name in SPLITS:
        if name not in columns:
            continue
        lacking = [key for key in (f"{name}_pid", f"{name}_cam") if key not in columns]
        if lacking:
            raise FeatureFileError(f"features: expected the columns {', '.join(lacking)} beside {name}")
        paths = tuple(map(str, columns.get(f"{name}_path", ())))
        splits[name] = FeatureTable(columns[name], columns[f"{name}_pid"], columns[f"{name}_cam"], paths)
    return FeatureFile(splits, meta)


def _to_safetensors(columns: dict[str, NDArray[Any]], meta: str) -> bytes:
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(columns[name]) for name in ("features", "pids", "camids")}
    for name in ("split", "paths"):
        if name in columns:
            arrays[name] = np.frombuffer("\n".join(columns[name].tolist()).encode(), np.uint8)
    return save(arrays, metadata={"meta": meta})


def _from_safetensors(path: Path) -> tuple[dict[str, NDArray[Any]], str]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            'features: .safetensors needs the package safetensors: pip install "reidfast[train]"'
        ) from error
    try:
        with safe_open(path, framework="numpy") as file:
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
            meta = (file.metadata() or {}).get("meta", "{}")
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    n = len(columns.get("pids", ()))
    for name in ("split", "paths"):
        if name in columns:
            texts = columns[name].tobytes().decode().split("\n") if n else []
            columns[name] = np.array(texts, dtype=np.str_).reshape(-1)
    return columns, meta
