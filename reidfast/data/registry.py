# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Readers by name, where their data is looked for, and how what is missing is reported."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from reidfast.data.records import Records, ReidData

Root = str | os.PathLike[str]
Reader = Callable[..., ReidData]
_READERS: dict[str, Reader] = {}


class DataWarning(UserWarning):
    """A data set was read, but it is not the published one: something is missing or counts differ."""


def reader(*names: str) -> Callable[[Reader], Reader]:
    """Registers `read(name, root, **options) -> ReidData` under one or several names."""

    def register(function: Reader) -> Reader:
        for name in names:
            _READERS[name] = function
        return function

    return register


def list_datasets() -> list[str]:
    """Names of the data sets that `load_dataset` knows, sorted."""
    return sorted(_READERS)


def load_dataset(name: str, root: Root | None = None, **options: Any) -> ReidData:
    """Reads a data set's tables; no image is opened.

    Args:
        name: One of `list_datasets()`, or the path of a JSON split or of a CSV table.
        root: The folder that holds the data sets, or the data set's own folder. Default: the environment variable
            REIDFAST_DATA. For `folder` and `synthetic`: the folder itself.
        **options: The reader's own options; see docs/data.md.

    Raises:
        ValueError: Unknown name or option value; a file that is not what its layout says.
        FileNotFoundError: The data is not there; the message says what was looked for, and where.

    Warns:
        DataWarning: Counts differ from the published ones, or a split is missing. The same sentences are in `.notes`.
    """
    if name in _READERS:
        return _READERS[name](name, root, **options)
    suffix = Path(name).suffix.lower()
    if suffix in (".json", ".csv"):
        kind = "json" if suffix == ".json" else "folder"
        if root is not None and kind == "json":
            options.setdefault("images", root)
        return _READERS[kind](kind, name, **options)
    raise ValueError(f"data: expected one of {', '.join(list_datasets())}, or a .json or .csv file, got {name!r}")


def data_root(name: str, root: Root | None = None) -> Path:
    """The folder under which data sets are looked for; FileNotFoundError where there is none."""
    given = os.environ.get("REIDFAST_DATA") if root is None else root
    if not given:
        raise FileNotFoundError(
            f"{name}: expected the folder of the data sets as root or in REIDFAST_DATA, got neither; set one"
        )
    path = Path(given).expanduser()
    if not path.is_dir():
        source = "REIDFAST_DATA" if root is None else "the folder given"
        raise FileNotFoundError(f"{name}: no such folder: {path} ({source}); check the path")
    return path


def cache_folder() -> Path:
    """Where what can be made again is kept: REIDFAST_CACHE, else $XDG_CACHE_HOME/reidfast, else ~/.cache/reidfast."""
    named = os.environ.get("REIDFAST_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "reidfast"


def find_folder(name: str, root: Root | None, folders: Iterable[str], holds: Iterable[str]) -> Path:
    """The data set's own folder: `root/<one of folders>`, or `root` itself, that holds one of the entries `holds`."""
    base = data_root(name, root)
    folders, holds = list(folders), list(holds)
    for folder in [base / f for f in folders] + [base]:
        if any((folder / entry).exists() for entry in holds):
            return folder
    raise FileNotFoundError(f"{name}: found none of {', '.join(holds)} in {base} or its folder {' or '.join(folders)}")


def list_images(folder: Path, suffixes: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".bmp", ".webp")) -> list[str]:
    """Names of the images in a folder, sorted; hidden files and anything else are passed over."""
    with os.scandir(folder) as entries:
        found = [e.name for e in entries if e.name.lower().endswith(suffixes) and not e.name.startswith(".")]
    return sorted(found)


def missing_files(records: Records) -> list[str]:
    """Paths of a table that are not on disk; one directory listing a folder, not one question a file."""
    there: dict[str, set[str]] = {}
    gone = []
    for path in records.paths:
        folder, _, leaf = path.rpartition("/")
        if folder not in there:
            at = records.root / folder
            there[folder] = set(os.listdir(at)) if at.is_dir() else set()
        if leaf not in there[folder]:
            gone.append(path)
    return gone


def require_files(name: str, *tables: Records) -> None:
    """FileNotFoundError naming how many of the listed images are missing, and the first of them."""
    total = sum(len(t) for t in tables)
    gone = [t.root / path for t in tables for path in missing_files(t)]
    if gone:
        raise FileNotFoundError(f"{name}: {len(gone):,} of {total:,} listed images are missing, first {gone[0]}")


def checked(data: ReidData, published: Mapping[str, Mapping[str, int]], notes: Iterable[str] = ()) -> ReidData:
    """Compares the counts of the splits that are there with the published ones; warns, and keeps the sentences."""
    said = list(notes)
    for split, counts in data.summary().items():
        if not counts["images"]:
            continue
        for key, wanted in published.get(split, {}).items():
            if counts[key] != wanted:
                said.append(f"{split}: expected {wanted:,} {key} as published, found {counts[key]:,}")
    for sentence in said:
        warnings.warn(f"{data.name}: {sentence}", DataWarning, stacklevel=4)
    return ReidData(
        data.name, data.train, data.query, data.gallery, data.distractor, (*data.notes, *said), dict(data.info)
    )
