# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The peers' evaluators, for comparison: the peer's own code where the package index has it, our restatement otherwise.

- fast-reid, cython: its own `rank_cy.pyx` from the wheel `fastreid==1.4.0`, compiled here;
- torchreid, numpy: its own `rank.py` from the source archive `torchreid==0.2.5`;
- torchreid, cython: that archive leaves the .pyx out, so `torchreid_restated.pyx` beside this file says in our words
  what it does;
- torchreid, re-ranking: its own `distance.py` and `rerank.py` from the same archive, from features to the final matrix;
- fast-reid, Jaccard distances: its own `compute_dist.py` from the same wheel, which is OpenUnReID's and
  cluster-contrast's code (their faiss search on the CPU); `dense_restated.py` says the same in our words where faiss is
  not installed. Neither OpenUnReID nor cluster-contrast is in the package index.

Archives are unpacked below the user's cache folder and never installed. Compiling needs `pip install cython` and a C
compiler (extra `[peers]`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "reidfast" / "peers"


def unpack(requirement: str) -> Path:
    """The unpacked archive of ``name==version``, downloaded once."""
    folder = CACHE / requirement.replace("==", "-")
    if not (folder / ".complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-d",
            str(folder),
        ]
        subprocess.run([*command, requirement], check=True, capture_output=True)
        archive = next(p for p in folder.iterdir() if p.suffix in (".whl", ".gz"))
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
        (folder / ".complete").touch()
    return folder


def compile_pyx(source: Path, name: str) -> ModuleType:
    """Cython source as a module, compiled once per source text."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    folder = CACHE / f"{name}-{zlib.crc32(source.read_bytes()):08x}-{sys.implementation.cache_tag}"
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{name}.pyx"
    copy.write_text(source.read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        extensions = cythonize(
            [Extension(name, [str(copy)], include_dirs=[np.get_include()], extra_compile_args=["-O3", "-w"])],
            language_level=3, quiet=True,
        )  # fmt: skip
        build = build_ext(Distribution({"ext_modules": extensions}))
        build.build_lib = build.build_temp = str(folder)
        build.ensure_finalized()
        build.run()
    return load(next(folder.glob(f"{name}*.so")), name)


def load(path: Path, name: str) -> ModuleType:
    """A module from a file, without touching sys.path."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


@functools.cache
def fastreid_cython() -> ModuleType:
    return compile_pyx(unpack("fastreid==1.4.0") / "fastreid/evaluation/rank_cylib/rank_cy.pyx", "rank_cy")


@functools.cache
def torchreid_cython() -> ModuleType:
    return compile_pyx(Path(__file__).with_name("torchreid_restated.pyx"), "torchreid_restated")


@functools.cache
def torchreid_numpy() -> ModuleType:
    return load(next(unpack("torchreid==0.2.5").glob("*/torchreid/reid/metrics/rank.py")), "torchreid_rank")


@functools.cache
def torchreid_rerank() -> Callable[[torch.Tensor, torch.Tensor], NDArray[np.float32]]:
    """Query and gallery features to the final distances by torchreid's own code: three matrices, then `re_ranking`."""
    metrics = next(unpack("torchreid==0.2.5").glob("*/torchreid/reid/metrics/distance.py"))
    distance = load(metrics, "torchreid_distance").compute_distance_matrix
    rerank = load(metrics.parents[1] / "utils/rerank.py", "torchreid_rerank").re_ranking
    return lambda q, g: rerank(distance(q, g).numpy(), distance(q, q).numpy(), distance(g, g).numpy())


@functools.cache
def fastreid_jaccard() -> Callable[[torch.Tensor], NDArray[np.float32]]:
    """Features to dense Jaccard distances by fast-reid's own code with faiss on the CPU, k1 = 30 and k2 = 6.

    The file is loaded alone, as part of a package of no other content: fast-reid's own imports half of fast-reid.
    """
    folder = unpack("fastreid==1.4.0") / "fastreid/utils"
    package = ModuleType("fastreid_utils_alone")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    module = importlib.import_module(f"{package.__name__}.compute_dist")
    return lambda x: module.compute_jaccard_distance(x, k1=30, k2=6, search_option=3)
