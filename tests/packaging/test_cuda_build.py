# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""CUDA without a GPU: every kernel compiles for three architectures, and the whole extension builds, links and imports
beside the CPU build of torch."""

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import setuptools

from reidfast.cli.info import covers

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
def test_cuda_library_builds_links_and_loads(tmp_path):
    """For 7.5, the oldest architecture; the test above compiles the newer ones."""
    folder = ROOT / "build" / "cuda-test"  # kept: the second run is quick
    shared = {"REIDFAST_LIBRARIES": ""} | {"REIDFAST_BUILD_DIR": str(folder / "cmake")}
    done = build(folder, REIDFAST_CUDA="1", TORCH_CUDA_ARCH_LIST="7.5", REIDFAST_TARGET="reidfast_cuda", **shared)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    library = folder / "cmake" / "cuda" / "libreidfast_cuda.so"

    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True).stdout
    assert "libcudart" not in needed and "libtorch_cuda" not in needed and "libcuda.so" not in needed
    assert "libtorch_cpu.so" in needed and "RUNPATH" not in needed

    source = f"""
import torch, reidfast
torch.ops.load_library({str(library)!r})
assert torch.ops.reidfast_runtime.cuda_architectures() == "75-real"
for op in ("reidfast::set_pool", "reidfast::set_pool_backward", "reidfast_eval::rerank_jaccard"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA"), op
print(torch.ops.reidfast.set_pool(torch.ones(4, 3), torch.ones(4), torch.tensor([0, 4]), "linear").tolist())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[1.0, 1.0, 1.0]]"


def test_the_library_uses_the_stable_abi_alone():
    """No C++ symbol of torch, and no newer C library than manylinux_2_34 has."""
    library = ROOT / "reidfast" / "libreidfast.so"
    if not library.is_file():
        pytest.skip("the native library is not built in this checkout")
    symbols = subprocess.run(["nm", "-DC", str(library)], capture_output=True, text=True, check=True).stdout
    undefined = [line.split(" U ", 1)[1] for line in symbols.splitlines() if " U " in line]
    assert not [name for name in undefined if re.match(r"(at|c10|torch)::", name)]
    audit = Path(sys.executable).with_name("torch-abi-audit")
    if audit.is_file():
        done = subprocess.run([str(audit), "--check", "torch", str(library)], capture_output=True, text=True)
        assert done.returncode == 0 and "Min torch:   2.11.0" in done.stdout, done.stdout
    versions = {tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_([0-9.]+)", " ".join(undefined))}
    assert max(versions) <= (2, 34)


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
    with pytest.raises(setup_py["BuildError"], match="REIDFAST_CUDA=1 but no nvcc was found"):
        setup_py["decide_cuda"](CUDA)
    monkeypatch.setenv("REIDFAST_CUDA", "yes")
    with pytest.raises(setup_py["BuildError"], match="auto, 0 or 1, got 'yes'"):
        setup_py["decide_cuda"](CUDA)


@pytest.mark.parametrize(
    "spelled,cmake",
    [
        ("8.0;9.0a+PTX", "80-real;90a"),
        ("8.0 10.0", "80-real;100-real"),
        ("12.0+PTX", "120"),
        ("Ampere;Hopper", "80-real;86;90"),
    ],
)
def test_architectures(setup_py, monkeypatch, spelled, cmake):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", spelled)
    assert setup_py["cuda_architectures"]() == cmake


def test_default_architectures_are_those_of_this_machine_or_all_common_ones(setup_py, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    functions = setup_py["cuda_architectures"].__globals__
    functions["local_architectures"] = lambda: "8.6"
    assert setup_py["cuda_architectures"]() == "86-real"
    functions["local_architectures"] = lambda: ""
    assert setup_py["cuda_architectures"]() == "75-real;80-real;86-real;89-real;90-real;100-real;120"


@pytest.mark.parametrize("spelled,words", [("Volta", "'Volta'"), ("6.1", "from 7.5 on, got 6.1")])
def test_architectures_that_are_not_known(setup_py, monkeypatch, spelled, words):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", spelled)
    with pytest.raises(setup_py["BuildError"], match=words):
        setup_py["cuda_architectures"]()


@pytest.mark.parametrize(
    "built,capability,covered",
    [
        ("80-real 90", (8, 6), True),
        ("80-real 90", (9, 0), True),
        ("80-real 90", (12, 0), True),
        ("80-real 90-real", (12, 0), False),
        ("90a-real", (9, 0), True),
        ("90a", (10, 0), False),
        ("80-real", (7, 5), False),
    ],
)
def test_info_says_whether_a_build_covers_a_device(built, capability, covered):
    assert covers(built, *capability) is covered


def test_a_cuda_part_that_fails_leaves_the_cpu_part(setup_py, monkeypatch, tmp_path, capsys):
    """In auto; with REIDFAST_CUDA=1 it is an error."""
    (tmp_path / "libreidfast.so").write_bytes(b"library")
    (tmp_path / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"module")

    class Build(setup_py["CMakeBuild"]):
        def __init__(self):
            self.verbose = False

        def cmake(self, torch, with_cuda, goals):
            if with_cuda:
                raise setup_py["BuildError"]("nvcc failed: error: no such architecture")
            return tmp_path

    functions = setup_py["CMakeBuild"].build_into.__globals__
    functions["decide_cuda"] = lambda torch: (True, "torch has CUDA 13.0, nvcc 13.0")
    target = tmp_path / "reidfast"
    target.mkdir()
    monkeypatch.setenv("REIDFAST_CUDA", "auto")
    Build().build_into(target)
    info = json.loads((target / "_build_info.json").read_text())
    assert info["native"] and not info["cuda"] and "no such architecture" in info["cuda_reason"]
    assert (target / "libreidfast.so").is_file() and "The CPU part is installed" in capsys.readouterr().err
    monkeypatch.setenv("REIDFAST_CUDA", "1")
    with pytest.raises(setup_py["BuildError"], match="no such architecture"):
        Build().build_into(target)


def test_without_a_compiler_the_build_ends_with_its_cause(tmp_path):
    done = build(tmp_path, PATH=str(tmp_path), REIDFAST_BUILD_DIR=str(tmp_path / "build"))
    assert done.returncode != 0
    assert "reidfast: the native part could not be built: cmake was not found" in done.stderr
    assert "REIDFAST_NATIVE=0 installs reidfast without it" in done.stderr


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
