# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The CUDA emulation itself: that it computes what a GPU would, and finds what it promises to find."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import cuda_emu
import pytest
import torch

ROOT = cuda_emu.ROOT


@pytest.fixture(scope="module")
def library():
    return ctypes.CDLL(str(cuda_emu.build()))


def run(library, name, *, blocks=1, threads=64, shared_bytes=256, x=None):
    x = torch.arange(blocks * threads, dtype=torch.float32) if x is None else x
    out = torch.zeros(blocks * threads)
    message = ctypes.create_string_buffer(1024)
    pointers = ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(out.data_ptr())
    library.selftest(name.encode(), *pointers, blocks, threads, shared_bytes, message)
    return out, message.value.decode()


@pytest.mark.parametrize("order", ["forward", "reverse", "7", "8"])
def test_blocks_and_barriers(library, order, monkeypatch):
    monkeypatch.setenv("REID_CUDA_EMU_ORDER", order)
    x = torch.randint(0, 100, (400 * 96,)).float()
    out, message = run(library, "sum", blocks=400, threads=96, x=x)
    assert not message
    assert torch.equal(out.view(400, 96), x.view(400, 96).sum(1, keepdim=True).expand(400, 96))


@pytest.mark.parametrize("order", ["forward", "reverse", "3"])
def test_warp_functions_and_atomics(library, order, monkeypatch):
    monkeypatch.setenv("REID_CUDA_EMU_ORDER", order)
    out, message = run(library, "warp", threads=96, x=torch.randn(96))
    assert not message and not out.any()
    out, message = run(library, "atomics", blocks=5, threads=128)
    assert not message and out[:2].tolist() == [5 * 64, 5 * 127]


def test_a_missing_barrier_shows(library, monkeypatch):
    results = set()
    for order in ("forward", "reverse"):
        monkeypatch.setenv("REID_CUDA_EMU_ORDER", order)
        out, message = run(library, "missing_barrier")
        assert not message
        results.add(tuple(out.nan_to_num(-1).tolist()))
    assert len(results) == 2


@pytest.mark.parametrize(
    "name,words",
    [
        ("divergent_barrier", r"different barriers, .*selftest\.cu:\d+ and .*selftest\.cu:\d+"),
        ("deadlock", r"deadlock: .*selftest\.cu:\d+"),
        ("lost_lane", r"reads lane 5, which takes no part in it at .*selftest\.cu:\d+, thread \(0, 0, 0\)"),
    ],
)
def test_errors_name_the_place(library, name, words):
    with pytest.raises(RuntimeError, match=words):
        _, message = run(library, name)
        raise RuntimeError(message)


def test_refuses_what_a_gpu_would(library):
    assert "block of 1056 threads" in run(library, "sum", threads=1056)[1]
    assert "300000 bytes of shared memory" in run(library, "sum", threads=32, shared_bytes=300_000)[1]


def asan_environment() -> dict[str, str]:
    # libstdc++ too: the sanitizer looks for __cxa_throw when it starts, and a kernel that refuses its inputs throws.
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    if not all(map(os.path.isabs, libraries)):
        pytest.skip("g++ has no libasan.so here")
    options = "detect_leaks=0:abort_on_error=0:halt_on_error=1:exitcode=77"
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(Path(torch.__file__).parent / "lib"),  # what loads the emulation without torch
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": options,
        "REID_CUDA_EMU_ASAN": "1",
        "PYTHONPATH": str(ROOT),
    }


def test_address_sanitizer_finds_an_overflow():
    source = f"""
import ctypes
library = ctypes.CDLL({str(cuda_emu.build("cuda_emu_asan"))!r})
x, out = (ctypes.c_float * 64)(), (ctypes.c_float * 64)()
library.selftest(b"sum", x, out, 1, 64, 8, ctypes.create_string_buffer(1024))
print("right kernel passed", flush=True)
library.selftest(b"shared_overflow", x, out, 1, 64, 256, ctypes.create_string_buffer(1024))
"""
    done = subprocess.run([sys.executable, "-c", source], env=asan_environment(), capture_output=True, text=True)
    assert "right kernel passed" in done.stdout, done.stderr
    assert done.returncode == 77 and "heap-buffer-overflow" in done.stderr and "selftest.cu:" in done.stderr


def test_every_op_under_address_sanitizer_in_another_order():
    """The emulated tests of all ops again, instrumented, with fibers in reverse."""
    cuda_emu.build("cuda_emu_asan")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "tests/ops",
            "-q",
            "-x",
            "-k",
            "cuda_emu",
            "-p",
            "no:cacheprovider",
            "--no-header",
        ],
        cwd=ROOT,
        env={**asan_environment(), "REID_CUDA_EMU_ORDER": "reverse"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
