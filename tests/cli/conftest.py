# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The command in this process, and a small data set for it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from reidfast.cli import main
from reidfast.engine import FeatureFile, FeatureTable, write_features


class Result:
    """Exit status and what was printed."""

    def __init__(self, status: int, out: str, err: str):
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def reidfast(capsys):
    """Run `reidfast ARGUMENTS`."""

    def run(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Result(status, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """Twelve persons, plain colours, three cameras, in the `folder` layout with query and gallery."""
    root = tmp_path_factory.mktemp("people")
    rng = np.random.default_rng(0)
    for pid in range(12):
        shirt, trousers = rng.integers(20, 235, (2, 3))
        for camera in (1, 2, 3):
            for split, count in (("query", 1), ("gallery", 2)):
                folder = root / split / f"{pid:04d}"
                folder.mkdir(parents=True, exist_ok=True)
                for index in range(count):
                    picture = np.full((32, 16, 3), 120.0)
                    picture[6:18, 4:12], picture[18:30, 5:11] = shirt, trousers
                    noisy = picture + rng.normal(0, 14, picture.shape) + rng.normal(0, 14, 3)
                    pixels = np.clip(noisy, 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / f"{camera}_{index:04d}.png")
    return root


@pytest.fixture
def features(tmp_path):
    """A feature file of 20 queries and 60 gallery rows of 10 identities, without images."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(10, 16))

    def table(count, start):
        pids = np.arange(count) % 10
        rows = centres[pids] + rng.normal(0, 0.9, (count, 16))
        paths = tuple(f"{start + i:04d}.jpg" for i in range(count))
        return FeatureTable(rows.astype(np.float32), pids, np.arange(count) // 10 % 3, paths)

    path = tmp_path / "features.npz"
    write_features(path, FeatureFile({"query": table(20, 0), "gallery": table(60, 100)}))
    return path
