# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Thin driver: asks Python where torch's headers are and lets CMake build the native parts.

Environment:
    REIDFAST_NATIVE=1|0      1 (default): build the native part, and fail where that fails; 0: install pure Python.
    REIDFAST_CUDA=auto|0|1   auto (default): also build the CUDA library when torch is a CUDA build and nvcc is found,
                             and keep the CPU part when that fails; 1: build it, also beside a CPU build of torch, or
                             fail; 0: CPU only. Whether a GPU is present is never asked.
    TORCH_CUDA_ARCH_LIST     Architectures, as torch spells them: "8.0;9.0a+PTX" or names ("Ampere;Hopper"). Default:
                             those of the GPUs in this machine, else 7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX.
    REIDFAST_LIBRARIES       Folder with libreidfast.so (and libreidfast_cuda.so) that were built already: they serve
                             every Python and torch, so that only reidfast._C is built here, without torch.
    REIDFAST_BUILD_DIR       Where CMake builds. CMAKE_ARGS, CMAKE_CXX_COMPILER_LAUNCHER and MAX_JOBS are passed on.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
NAMED_ARCHITECTURES = {
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;12.0+PTX",
}


class BuildError(Exception):
    """A native part that cannot be built, in words for the user."""


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    nvcc = next((str(c) for c in candidates if c.is_file()), None) or shutil.which("nvcc")
    return str(Path(nvcc).resolve()) if nvcc else None


def local_architectures() -> str:
    """Compute capabilities of the GPUs in this machine, '8.6;9.0'; empty where there are none or nobody can tell."""
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        text = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    capabilities = sorted({line.strip() for line in text.splitlines() if re.fullmatch(r"\d+\.\d+", line.strip())})
    return ";".join(capabilities)


def cuda_architectures() -> str:
    """'8.0;9.0a+PTX' or 'Ampere' as torch spells it -> '80-real;90a' as CMake spells it."""
    spelled = os.environ.get("TORCH_CUDA_ARCH_LIST") or local_architectures() or ARCHITECTURES
    result = []
    for name in re.split(r"[;, ]+", spelled.strip()):
        for item in NAMED_ARCHITECTURES.get(name, name).split(";"):
            match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", item)
            if not match:
                raise BuildError(
                    f"expected TORCH_CUDA_ARCH_LIST like '8.0;9.0a+PTX' or names of {', '.join(NAMED_ARCHITECTURES)}, "
                    f"got {spelled!r}"
                )
            major, minor, suffix, ptx = match.groups()
            if (int(major), int(minor)) < (7, 5):
                raise BuildError(f"expected CUDA architectures from 7.5 on, got {item} in {spelled!r}")
            result.append(f"{major}{minor}{suffix}" + ("" if ptx else "-real"))
    return ";".join(dict.fromkeys(result))


def decide_cuda(torch) -> tuple[bool, str]:
    """Whether to build the CUDA library, and the reason in words (kept for `reidfast info`)."""
    wish = os.environ.get("REIDFAST_CUDA", "auto").lower()
    nvcc = find_nvcc()
    if wish not in ("auto", "0", "1"):
        raise BuildError(f"expected REIDFAST_CUDA to be auto, 0 or 1, got {wish!r}")
    if wish == "0":
        return False, "REIDFAST_CUDA=0 when this build was made"
    if wish == "1":
        if nvcc is None:
            raise BuildError(
                "REIDFAST_CUDA=1 but no nvcc was found: looked in CUDA_HOME, /usr/local/cuda/bin and PATH. Install the "
                "CUDA toolkit or set CUDA_HOME, or build with REIDFAST_CUDA=0."
            )
        return True, f"REIDFAST_CUDA=1, {nvcc_version(nvcc)}"
    if torch.version.cuda is None:
        return False, f"torch {torch.__version__} is a CPU build (REIDFAST_CUDA=1 builds CUDA all the same)"
    if nvcc is None:
        return (
            False,
            f"torch has CUDA {torch.version.cuda} but no nvcc was found in CUDA_HOME, /usr/local/cuda/bin or PATH",
        )
    return True, f"torch has CUDA {torch.version.cuda}, {nvcc_version(nvcc)}"


def nvcc_version(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release ([\d.]+)", text)
    return f"nvcc {match.group(1)}" if match else "nvcc of unknown version"


def first_error(text: str) -> str:
    """The line of a build's output that names its cause."""
    lines = [line.strip() for line in text.splitlines()]
    marks = (r"\berror\b", r"\bfatal\b", "CMake Error", r"\bnot found\b")
    return next((line for mark in marks for line in lines if re.search(mark, line)), lines[-1] if lines else "")[:400]


def run(command: list[str], verbose: bool) -> None:
    """Run one step of the build; what it says is shown when it fails, and its cause becomes the error."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if verbose:
            sys.stdout.write(line)
    if process.wait() == 0:
        return
    if not verbose:
        sys.stderr.write("".join(lines[-60:]))
    raise BuildError(f"{Path(command[0]).name} failed: {first_error(''.join(lines))}")


class CMakeBuild(build_ext):
    """Configures and builds with CMake; writes reidfast/_build_info.json beside the libraries."""

    def run(self):
        target = Path(self.build_lib) / "reidfast" if not self.inplace else ROOT / "reidfast"
        target.mkdir(parents=True, exist_ok=True)
        try:
            self.build_into(target)
        except BuildError as error:
            sys.exit(
                f"reidfast: the native part could not be built: {error}\n"
                "It needs a C++20 compiler (g++ 11 or clang 14 and newer) and cmake. REIDFAST_NATIVE=0 installs "
                "reidfast without it: every op then works through plain PyTorch, more slowly."
            )

    def build_into(self, target: Path) -> None:
        wish = os.environ.get("REIDFAST_NATIVE", "1").lower()
        if wish not in ("0", "1"):
            raise BuildError(f"expected REIDFAST_NATIVE to be 0 or 1, got {wish!r}")
        info = {"native": wish == "1", "cuda": False, "native_reason": "", "cuda_reason": ""}
        for old in [*target.glob("_C*.so"), *target.glob("libreidfast*.so")] if wish == "0" else []:
            old.unlink()
        if wish == "0":
            info["native_reason"] = info["cuda_reason"] = "REIDFAST_NATIVE=0 when this copy was built"
        else:
            if libraries := os.environ.get("REIDFAST_LIBRARIES"):
                info |= self.take(Path(libraries), target)
                (target / "_build_info.json").write_text(json.dumps(info, indent=1) + "\n")
                return
            try:
                import torch
            except ImportError as error:
                raise BuildError(f"torch's headers are needed: {error}") from error
            with_cuda, info["cuda_reason"] = decide_cuda(torch)
            if goal := os.environ.get("REIDFAST_TARGET"):  # one target for the tests, nothing installed
                self.cmake(torch, with_cuda, [goal])
                return
            build = self.cmake(torch, False, ["reidfast", "_C"])
            install(build / "libreidfast.so", target)
            install_module(build, target)
            info["torch"] = torch.__version__
            if with_cuda:
                try:
                    build = self.cmake(torch, True, ["reidfast_cuda"])
                    install(build / "libreidfast_cuda.so", target)
                    info["cuda"] = True
                except BuildError as error:
                    if os.environ.get("REIDFAST_CUDA") == "1":
                        raise
                    info["cuda_reason"] = f"the CUDA part could not be built: {error}"
                    print(f"WARNING: reidfast: {info['cuda_reason']}. The CPU part is installed.", file=sys.stderr)
            if not info["cuda"]:
                (target / "libreidfast_cuda.so").unlink(missing_ok=True)
        (target / "_build_info.json").write_text(json.dumps(info, indent=1) + "\n")

    def take(self, libraries: Path, target: Path) -> dict:
        """Install libraries that were built already, and the module for this Python."""
        if not (libraries / "libreidfast.so").is_file():
            raise BuildError(f"REIDFAST_LIBRARIES: expected a folder with libreidfast.so, got {libraries}")
        install(libraries / "libreidfast.so", target)
        install_module(self.cmake(None, False, ["_C"]), target)
        if with_cuda := (libraries / "libreidfast_cuda.so").is_file():
            install(libraries / "libreidfast_cuda.so", target)
        else:
            (target / "libreidfast_cuda.so").unlink(missing_ok=True)
        return {"cuda": with_cuda, "cuda_reason": "" if with_cuda else "this is the CPU build of reidfast"}

    def cmake(self, torch, with_cuda: bool, goals: list[str]) -> Path:
        """Build targets; returns the folder they are in."""
        import pybind11

        cmake = shutil.which("cmake")
        if cmake is None:
            raise BuildError("cmake was not found; pip install cmake ninja")
        default = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        build = Path(os.environ.get("REIDFAST_BUILD_DIR", default)) / ("cuda" if with_cuda else "cpu")
        build.mkdir(parents=True, exist_ok=True)
        folder = Path(torch.__file__).parent if torch else Path()
        arguments = [
            f"-DREIDFAST_TORCH_INCLUDES={folder / 'include' if torch else ''}",
            f"-DREIDFAST_TORCH_LIB={folder / 'lib' if torch else ''}",
            f"-DREIDFAST_PYTHON_INCLUDE={sysconfig.get_path('include')}",
            f"-DREIDFAST_PYBIND11_INCLUDE={pybind11.get_include()}",
            f"-DREIDFAST_EXT_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
            f"-DREIDFAST_WITH_CUDA={'ON' if with_cuda else 'OFF'}",
        ]
        for language in ("CXX", "CUDA"):
            if launcher := os.environ.get(f"CMAKE_{language}_COMPILER_LAUNCHER"):
                arguments.append(f"-DCMAKE_{language}_COMPILER_LAUNCHER={launcher}")
        if nvcc := find_nvcc():  # also for the cuda_check target of a CPU build
            arguments += [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DREIDFAST_CUDA_ARCHITECTURES={cuda_architectures()}"]
        arguments += os.environ.get("CMAKE_ARGS", "").split()
        if shutil.which("ninja"):
            arguments.append("-GNinja")
        run([cmake, "-S", str(ROOT), "-B", str(build), *arguments], self.verbose)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 2)
        run([cmake, "--build", str(build), "--target", *goals, "-j", jobs], True)
        return build

    def get_outputs(self):
        return []


def install_module(build: Path, target: Path) -> None:
    for old in target.glob("_C*.so"):
        old.unlink()
    install(build / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", target)


def install(source: Path, target: Path) -> None:
    """Copy beside, then rename: a running process keeps its old library, nobody sees half a file."""
    partial = target / f"{source.name}.partial"
    shutil.copy2(source, partial)
    partial.rename(target / source.name)


setup(ext_modules=[Extension("reidfast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
