# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""CUHK03 under its new protocol: 767/700 identities (Zhong et al., "Re-ranking Person Re-identification", 2017)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from reidfast.data.market1501 import FOLDERS, read_folders
from reidfast.data.records import Records, ReidData
from reidfast.data.registry import Root, checked, find_folder, list_images, reader, require_files

PUBLISHED: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "detected": {
        "train": {"images": 7365, "ids": 767, "cameras": 2},
        "query": {"images": 1400, "ids": 700, "cameras": 2},
        "gallery": {"images": 5332, "ids": 700, "cameras": 2},
    },
    "labeled": {
        "train": {"images": 7368, "ids": 767, "cameras": 2},
        "query": {"images": 1400, "ids": 700, "cameras": 2},
        "gallery": {"images": 5328, "ids": 700, "cameras": 2},
    },
}
NAME = re.compile(r"^(\d+)_(\d+)_([12])_(\d+)\.")  # camera pair, person of that pair, view, image


def read_protocol(name: str, protocol: Path, images: Path, root: Path) -> ReidData:
    """The official index file (1-based rows of `filelist`, `labels`, `camId`) over images `1_001_1_01.png|.jpg`."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        mat = loadmat(str(protocol))
        files = [str(cell[0]) for cell in mat["filelist"].reshape(-1)]
        pids = mat["labels"].reshape(-1).astype(np.int64)
        camids = mat["camId"].reshape(-1).astype(np.int64)
        rows = {s: mat[f"{s}_idx"].reshape(-1).astype(np.int64) - 1 for s in ("train", "query", "gallery")}
    except (KeyError, ValueError, TypeError, IndexError, NotImplementedError, MatReadError) as error:
        raise ValueError(f"{name}: expected the CUHK03-NP protocol in {protocol}, got {error!r}") from None
    inside = all(0 <= r.min(initial=0) <= r.max(initial=0) < len(files) for r in rows.values())
    if not len(files) == len(pids) == len(camids) or not inside:
        raise ValueError(f"{name}: expected indices into {len(files)} files in {protocol}, got some outside")
    there = {Path(leaf).stem: leaf for leaf in list_images(images)}  # the same image may be stored as .png or .jpg
    leaves = [there.get(Path(f).stem, f) for f in files]
    pairs = np.array([int(m.group(1)) if (m := NAME.match(f)) else 0 for f in files], np.int64)
    prefix = images.relative_to(root).as_posix()
    tables = {
        split: Records(root, tuple(f"{prefix}/{leaves[i]}" for i in r), pids[r], camids[r], {"pair": pairs[r]})
        for split, r in rows.items()
    }
    require_files(name, *tables.values())
    return ReidData(name, tables["train"], tables["query"], tables["gallery"])


@reader("cuhk03_np")
def cuhk03_np(name: str, root: Root | None = None, *, boxes: str = "detected") -> ReidData:
    """CUHK03-NP, either as `images_detected/` with the protocol's .mat file, or renamed into Market-style folders.

    Args:
        name: The name asked for.
        root: See `load_dataset`.
        boxes: `detected` or `labeled`.
    """
    boxes = {"labelled": "labeled"}.get(boxes, boxes)
    if boxes not in PUBLISHED:
        raise ValueError(f"{name}: expected boxes 'detected' or 'labeled', got {boxes!r}")
    image_folders = [f"images_{boxes}", boxes]
    folder = find_folder(name, root, ["cuhk03_np", "cuhk03-np", "CUHK03-NP", "cuhk03", "cuhk03_release"], image_folders)
    images = next(folder / f for f in image_folders if (folder / f).is_dir())
    if any((images / f).is_dir() for f in FOLDERS.values()):
        data, notes = read_folders(name, images, distractor=None)
        return checked(data, PUBLISHED[boxes], notes)
    wanted = f"cuhk03_new_protocol_config_{boxes}.mat"
    protocol = next((at for at in (folder / wanted, images / wanted) if os.path.isfile(at)), None)
    if protocol is None:
        raise FileNotFoundError(f"{name}: found images in {images} but not the protocol file {wanted} beside them")
    return checked(read_protocol(name, protocol, images, folder), PUBLISHED[boxes])
