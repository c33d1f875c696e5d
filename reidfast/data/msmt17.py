# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""MSMT17, first and second release, by its list files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from reidfast.data.records import Records, ReidData
from reidfast.data.registry import Root, checked, find_folder, reader, require_files

IMAGES = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}
LISTS = {"train": "list_train.txt", "val": "list_val.txt", "query": "list_query.txt", "gallery": "list_gallery.txt"}
PUBLISHED: Mapping[str, Mapping[str, int]] = {
    "train": {"images": 32621, "ids": 1041, "cameras": 15},
    "query": {"images": 11659, "ids": 3060, "cameras": 15},
    "gallery": {"images": 82161, "ids": 3060, "cameras": 15},
}


def read_list(name: str, root: Path, listing: Path, folder: str) -> Records:
    """A list file: `0000/0000_000_01_0303morning_0015_0.jpg 0` is path and identity; the name has the camera (01)."""
    paths, pids, camids = [], [], []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            path, pid = line.split()
            camid = int(path.rpartition("/")[2].split("_")[2])
            pids.append(int(pid))
        except (ValueError, IndexError):
            raise ValueError(f"{name}: expected '<path> <pid>' at {listing}:{number}, got {line[:80]!r}") from None
        paths.append(f"{folder}/{path}")
        camids.append(camid)
    return Records(root, tuple(paths), np.array(pids, np.int64), np.array(camids, np.int64))


@reader("msmt17")
def msmt17(name: str, root: Root | None = None, *, val: bool = True) -> ReidData:
    """MSMT17_V1 or MSMT17_V2, whichever the folder holds.

    The published training set of 32,621 images is list_train plus list_val; `val=False` leaves the second out.
    The lists number training and test identities from 0 each; the test ones are shifted past the training ones here,
    so that a pid is one person throughout the data set (no score depends on it).
    """
    folders = ["msmt17", "MSMT17_V1", "MSMT17_V2", "MSMT17", "msmt17/MSMT17_V1", "msmt17/MSMT17_V2"]
    folder = find_folder(name, root, folders, [LISTS["train"], LISTS["query"]])
    version = next((v for v, parts in IMAGES.items() if any((folder / p).is_dir() for p in parts)), None)
    if version is None:
        wanted = ", ".join(p for parts in IMAGES.values() for p in parts)
        raise FileNotFoundError(f"{name}: found the lists in {folder} but no image folder (one of {wanted})")
    train_images, test_images = IMAGES[version]
    notes, tables = [], {}
    for split, listing in LISTS.items():
        at = folder / listing
        if at.is_file():
            tables[split] = read_list(name, folder, at, train_images if split in ("train", "val") else test_images)
        else:
            notes.append(f"no {listing} in {folder}: {split} is empty")
            tables[split] = Records.empty(folder)
    train = tables["train"]
    if val and len(tables["val"]):
        more = tables["val"]
        pids, camids = np.r_[train.pids, more.pids], np.r_[train.camids, more.camids]
        train = Records(folder, train.paths + more.paths, pids, camids)
    shift = int(max(tables["train"].pids.max(initial=-1), tables["val"].pids.max(initial=-1))) + 1
    query, gallery = (Records(folder, t.paths, t.pids + shift, t.camids) for t in (tables["query"], tables["gallery"]))
    require_files(name, train, query, gallery)
    data = ReidData(name, train, query, gallery, info={"version": version})
    published = PUBLISHED if val else {k: v for k, v in PUBLISHED.items() if k != "train"}
    return checked(data, published, notes)
