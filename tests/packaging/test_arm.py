# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The CPU kernels for another processor: nothing of x86 outside the files' own guards."""

import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("aarch64-linux-gnu-g++")
FILES = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
# The flags of CMakeLists.txt for the plain build, the only one that is made there.
FLAGS = [
    "-std=c++20",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Werror",
    "-Wno-unknown-pragmas",
]
DEFINES = ["-DREID_ISA=isa_default", "-DCPU_CAPABILITY=DEFAULT", "-DCPU_CAPABILITY_DEFAULT"]


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)")
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_kernels_compile_for_arm(file):
    torch = [argument for path in include_paths() for argument in ("-isystem", path)]
    command = [COMPILER, *FLAGS, *DEFINES, "-fsyntax-only", "-I", str(ROOT), *torch, str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
