# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Compile .cu files for several architectures and fail where a kernel spills registers or keeps a stack frame.

    python tools/check_spills.py csrc/cuda/*.cu

Prints one line per file: kernels, most registers, most static shared memory. Needs nvcc, no GPU.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("80", "90", "100")
FLAGS = ("-std=c++17", "-O3", "-lineinfo", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC", "-Xptxas=-v")

# Kernels that may spill: (file stem, part of the kernel's mangled name) -> the reason.
ALLOWED: dict[tuple[str, str], str] = {}


@dataclass(frozen=True)
class Kernel:
    """What ptxas says about one kernel on one architecture."""

    name: str
    architecture: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int

    @property
    def clean(self) -> bool:
        """Whether nothing lives in local memory."""
        return self.stack == self.spill_stores == self.spill_loads == 0


def parse(text: str) -> list[Kernel]:
    """Kernels in the output of ``nvcc -Xptxas -v``.

    >>> parse('''ptxas info    : Compiling entry function '_Z1kv' for 'sm_90'
    ... ptxas info    : Function properties for _Z1kv
    ...     8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
    ... ptxas info    : Used 30 registers, used 1 barriers, 528 bytes smem''')
    [Kernel(name='_Z1kv', architecture='sm_90', registers=30, stack=8, spill_stores=4, spill_loads=4, shared=528)]
    """
    kernels = []
    entries = re.split(r"Compiling entry function '", text)[1:]
    for entry in entries:
        head = re.match(r"([^']+)' for '(\w+)'", entry)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        used = re.search(r"Used (\d+) registers", entry)
        if not (head and frame and used):
            raise ValueError(f"check_spills: ptxas output not understood: {entry[:300]!r}")
        shared = re.search(r"(\d+) bytes smem", entry)
        numbers = [int(n) for n in (used[1], *frame.groups())]
        kernels.append(Kernel(head[1], head[2], *numbers, int(shared[1]) if shared else 0))
    return kernels


def complaints(stem: str, kernels: Iterable[Kernel]) -> list[str]:
    """One line per kernel that spills and may not."""
    found = []
    for k in kernels:
        if k.clean or any(stem == file and part in k.name for file, part in ALLOWED):
            continue
        found.append(
            f"{stem}: {k.name} on {k.architecture}: {k.stack} bytes of stack, {k.spill_stores} spilled, "
            f"{k.spill_loads} read back"
        )
    return found


def compile_one(source: Path, output: Path, nvcc: str, launcher: list[str], architectures: Iterable[str]) -> str:
    """What nvcc prints while compiling ``source``; RuntimeError where it fails."""
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    command = [*launcher, nvcc, *FLAGS, *codes, f"-I{ROOT}", "-c", str(source), "-o", str(output / f"{source.stem}.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def main(argv: list[str] | None = None) -> int:
    """Check the files named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, default=sorted((ROOT / "csrc" / "cuda").glob("*.cu")))
    parser.add_argument("--nvcc", default=shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "cuda_check")
    parser.add_argument("--launcher", action="append", default=[], help="put before nvcc: ccache")
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(argv)
    if not Path(options.nvcc).is_file():
        print(f"check_spills: expected nvcc at {options.nvcc}, found none; give --nvcc", file=sys.stderr)
        return 2
    options.output.mkdir(parents=True, exist_ok=True)

    def check(source: Path) -> tuple[Path, str | None, list[Kernel]]:
        try:
            text = compile_one(source, options.output, options.nvcc, options.launcher, options.architectures)
            return source, None, parse(text)
        except RuntimeError as error:
            return source, str(error), []

    wrong = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for source, error, kernels in pool.map(check, options.sources):
            if error:
                wrong.append(error)
                continue
            wrong += complaints(source.stem, kernels)
            registers = max((k.registers for k in kernels), default=0)
            shared = max((k.shared for k in kernels), default=0)
            print(
                f"{source.stem}: {len(kernels)} kernels, at most {registers} registers, {shared} bytes of shared memory"
            )
    if wrong:
        print("check_spills: " + "\n".join(wrong), file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
