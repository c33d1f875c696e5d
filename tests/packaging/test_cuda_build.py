# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""CUDA without a GPU: every kernel compiles for three architectures, and the whole extension builds, links and imports
beside the CPU build of torch."""

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc") or ("/usr/local/cuda/bin/nvcc" if Path("/usr/local/cuda/bin/nvcc").is_file() else None)
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc (CUDA toolkit) in PATH or /usr/local/cuda")


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def build(folder: Path | None = None, **extra: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "REIDFAST_NATIVE": "1", **extra}
    place = ["--inplace"] if folder is None else ["--build-lib", str(folder)]
    command = [sys.executable, "setup.py", "-q", "build_ext", *place]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@needs_nvcc
def test_every_kernel_compiles_for_three_architectures_without_spills():
    done = build(REIDFAST_CUDA="0", REIDFAST_TARGET="cuda_check")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    for source in (ROOT / "csrc" / "cuda").glob("*.cu"):
        assert f"{source.stem}: " in done.stdout


@needs_nvcc
def test_extension_with_cuda_builds_links_and_imports(tmp_path):
    folder = ROOT / "build" / f"cuda-test-{sys.implementation.cache_tag}"  # kept: the second run is quick
    done = build(folder, REIDFAST_CUDA="1", REIDFAST_BUILD_DIR=str(folder / "cmake"), TORCH_CUDA_ARCH_LIST="9.0")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (module,) = (folder / "reidfast").glob("_C*.so")

    needed = subprocess.run(["readelf", "-d", str(module)], capture_output=True, text=True).stdout
    assert "libcudart" not in needed and "libtorch_cuda" not in needed and "libcuda.so" not in needed

    source = f"""
import importlib.util, torch
spec = importlib.util.spec_from_file_location("_C", {str(module)!r})
built = importlib.util.module_from_spec(spec)
spec.loader.exec_module(built)
info = built.build_info()
assert info["cuda"] and info["cuda_architectures"] == "90-real", info
for op in ("reidfast::set_pool", "reidfast::set_pool_backward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA"), op
print(torch.ops.reidfast.set_pool(torch.ones(4, 3), torch.ones(4), torch.tensor([0, 4]), "linear").tolist())
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[1.0, 1.0, 1.0]]"

    triton = importlib.util.find_spec("triton")
    cuobjdump = next(Path(triton.origin).parent.rglob("cuobjdump"), None) if triton else None
    if cuobjdump:
        listing = subprocess.run([str(cuobjdump), "--list-elf", str(module)], capture_output=True, text=True).stdout
        assert "sm_90" in listing and "sm_80" not in listing


@pytest.fixture
def setup_py(monkeypatch):
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    return runpy.run_path(str(ROOT / "setup.py"))


def with_nvcc(setup_py, path):
    setup_py["decide_cuda"].__globals__.update(find_nvcc=lambda: path, nvcc_version=lambda nvcc: "nvcc 13.0")


CPU, CUDA = (
    SimpleNamespace(__version__=v, version=SimpleNamespace(cuda=c)) for v, c in (("2.13.0+cpu", None), ("2.11", "13.0"))
)


@pytest.mark.parametrize(
    "wish,torch,nvcc,decision,words",
    [
        ("auto", CPU, "nvcc", False, "torch 2.13.0+cpu is a CPU build"),
        ("auto", CUDA, None, False, "torch has CUDA 13.0 but no nvcc was found"),
        ("auto", CUDA, "nvcc", True, "torch has CUDA 13.0, nvcc 13.0"),
        ("1", CPU, "nvcc", True, "REIDFAST_CUDA=1, nvcc 13.0"),
        ("0", CUDA, "nvcc", False, "REIDFAST_CUDA=0"),
    ],
)
def test_the_decision_gives_its_reason(setup_py, monkeypatch, wish, torch, nvcc, decision, words):
    monkeypatch.setenv("REIDFAST_CUDA", wish)
    with_nvcc(setup_py, nvcc)
    decided, reason = setup_py["decide_cuda"](torch)
    assert decided is decision and words in reason


def test_wishes_that_cannot_be_met(setup_py, monkeypatch):
    with_nvcc(setup_py, None)
    monkeypatch.setenv("REIDFAST_CUDA", "1")
    with pytest.raises(SystemExit, match="REIDFAST_CUDA=1 but no nvcc was found"):
        setup_py["decide_cuda"](CUDA)
    monkeypatch.setenv("REIDFAST_CUDA", "yes")
    with pytest.raises(SystemExit, match="auto, 0 or 1, got 'yes'"):
        setup_py["decide_cuda"](CUDA)


@pytest.mark.parametrize(
    "spelled,cmake",
    [(None, "90"), ("8.0;9.0a+PTX", "80-real;90a"), ("8.0 10.0", "80-real;100-real"), ("12.0+PTX", "120")],
)
def test_architectures(setup_py, monkeypatch, spelled, cmake):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    if spelled:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", spelled)
    assert setup_py["cuda_architectures"]() == cmake
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(SystemExit, match="'Hopper'"):
        setup_py["cuda_architectures"]()


PTXAS = """ptxas info    : Compiling entry function '_Z4goodv' for 'sm_80'
ptxas info    : Function properties for _Z4goodv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
ptxas info    : Compiling entry function '_Z3badv' for 'sm_90'
ptxas info    : Function properties for _Z3badv
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 528 bytes smem
"""


def test_spills_are_found(monkeypatch):
    check = tool("check_spills")
    kernels = check.parse(PTXAS)
    assert [k.registers for k in kernels] == [40, 255] and kernels[1].shared == 528
    assert check.complaints("op", kernels) == ["op: _Z3badv on sm_90: 16 bytes of stack, 8 spilled, 12 read back"]
    monkeypatch.setitem(check.ALLOWED, ("op", "bad"), "a test")
    assert check.complaints("op", kernels) == []


@needs_nvcc
def test_a_spilling_kernel_fails_the_check(tmp_path, capsys):
    source = tmp_path / "spills.cu"
    source.write_text(
        "__global__ void __launch_bounds__(1024, 2) spills(const float* x, float* y, int n) {\n"
        "  float v[64];\n"
        "  for (int i = 0; i < 64; ++i) v[i] = x[i * n];\n"
        "  for (int i = 0; i < n; ++i) v[(i * 7) % 64] += v[i % 64];\n"
        "  for (int i = 0; i < 64; ++i) y[i * n] = v[i];\n"
        "}\n"
    )
    check = tool("check_spills")
    assert check.main(["--nvcc", NVCC, "--output", str(tmp_path), "--architectures", "90", "--", str(source)]) == 1
    assert "bytes of stack" in capsys.readouterr().err
