# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""QAN on real sets with spoilt frames: CUHK03-NP, a set = all images of one person and view.

    python -m benchmarks.experiments.qan --weights OSNET.npz --out benchmarks/results/qan.json

Query: the 700 test persons' sets of view 1, gallery: their sets of view 2. Each frame is spoilt with probability 0, 20
or 40 %, in one of three ways (`benchmarks.experiments.corruption`; which one is a fixed draw for each image), in
training and at test; no quality label is used.
The backbone (OSNet x0.25, MSMT17) is frozen: its features and maps are extracted once, then heads train on them.
Everything goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.experiments.corruption import KINDS, spoil
from reidfast._files import write_whole
from reidfast.data import concatenate, decode, load
from reidfast.data.images import normalize, resize, to_float
from reidfast.data.registry import cache_folder
from reidfast.engine.progress import progress
from reidfast.models import create_model

VERSIONS = ("clean", "spoilt")
SIZE = (256, 128)


def kinds_of(n: int) -> NDArray[np.int64]:
    """In which of the `KINDS` each image of a table is spoilt, where it is."""
    rng = np.random.Generator(np.random.Philox(key=[0x91, n]))
    return (rng.random(n) * len(KINDS)).astype(np.int64)


class Maps:
    """Features and maps of both versions of every image, in files that are filled block by block.

    features [V, n, 512] float32, early [V, n, 96, 16, 8] and late [V, n, 128, 16, 8] float16.
    """

    def __init__(self, folder: Path, n: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.n = folder, n
        shapes = {"features": (512, "f4"), "early": (96, 16, 8, "f2"), "late": (128, 16, 8, "f2")}
        self.arrays: dict[str, Any] = {}
        for name, (*shape, kind) in shapes.items():
            path, whole = folder / f"{name}.npy", (len(VERSIONS), n, *shape)
            if path.exists():
                self.arrays[name] = np.lib.format.open_memmap(path, "r+")
            else:
                self.arrays[name] = np.lib.format.open_memmap(path, "w+", kind, whole)  # type: ignore[arg-type]
        self.done_at = folder / "done.json"
        self.done: set[str] = set(json.loads(self.done_at.read_text())) if self.done_at.exists() else set()

    def mark(self, block: str) -> None:
        for array in self.arrays.values():
            array.flush()
        self.done.add(block)
        with write_whole(self.done_at) as stream:
            stream.write(json.dumps(sorted(self.done)).encode())


@torch.inference_mode()
def extract(records: Any, weights: str, folder: Path, batch: int = 64, block: int = 1024) -> Maps:
    """Fill the maps of all versions of a table's images."""
    n = len(records)
    kinds = kinds_of(n)
    maps = Maps(folder, n)
    todo = [(v, s) for s in range(0, n, block) for v in range(len(VERSIONS)) if f"{v}/{s}" not in maps.done]
    if not todo:
        return maps
    model: Any = create_model("osnet_x0_25", weights=weights).eval()
    early: list[Tensor] = []
    model.conv3.register_forward_hook(lambda m, i, out: early.append(out))

    def picture(version: int, row: int) -> Tensor:
        image = decode(records.absolute(row))
        if version:
            # somebody else: the row half the table away, or the next one that is another person
            other = (row + n // 2) % n
            while records.pids[other] == records.pids[row]:
                other = (other + 1) % n
            image = spoil(image, KINDS[kinds[row]], row, 0, decode(records.absolute(other)))
        return to_float(resize(image, *SIZE))

    with ThreadPoolExecutor(1) as pool, progress(len(todo) * block, f"extract {folder.name}") as advance:
        for version, start in todo:
            stop = min(start + block, n)
            parts = [range(a, min(a + batch, stop)) for a in range(start, stop, batch)]
            made = pool.map(lambda part, v=version: torch.stack([picture(v, r) for r in part]), parts)
            for part, images in zip(parts, made, strict=True):
                early.clear()
                late = model.forward_map(normalize(images))
                rows = slice(part.start, part.stop)
                maps.arrays["features"][version, rows] = model.pool(late).numpy()
                maps.arrays["early"][version, rows] = early[0].half().numpy()
                maps.arrays["late"][version, rows] = late.half().numpy()
                advance(len(part))
            maps.mark(f"{version}/{start}")
    return maps


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.qan", description=__doc__)
    parser.add_argument("--weights", required=True, help="OSNet x0.25 trained on MSMT17")
    parser.add_argument("--cache", type=Path, default=cache_folder() / "experiments" / "qan")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    data = load("cuhk03_sets")
    test = concatenate([data.query, data.gallery], offset=False)
    for name, records in (("train", data.train), ("test", test)):
        extract(records, args.weights, args.cache / name)


if __name__ == "__main__":
    main()
