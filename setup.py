# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Thin driver: asks Python where torch is and lets CMake build reidfast._C.

Environment:
    REIDFAST_CUDA=auto|0|1   auto (default): compile CUDA when torch is a CUDA build and nvcc is found; 1: compile it,
    also beside a
                             CPU build of torch; 0: CPU only. Never asks whether a GPU is present.
    TORCH_CUDA_ARCH_LIST     "8.0;9.0a+PTX": architectures to compile for. Default 9.0+PTX.
    REIDFAST_NATIVE=auto|0|1 auto (default): without a working compiler install pure Python with a warning; 1: fail
    instead; 0: skip. CMAKE_ARGS, CMAKE_CXX_COMPILER_LAUNCHER, MAX_JOBS: passed on.
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


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(home) / "bin" / "nvcc"] if home else []
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    found = next((str(c) for c in candidates if c.is_file()), None) or shutil.which("nvcc")
    return str(Path(found).resolve()) if found else None


def cuda_architectures() -> str:
    """'8.0;9.0a+PTX' as torch spells it -> '80-real;90a' as CMake spells it."""
    spelled = os.environ.get("TORCH_CUDA_ARCH_LIST") or "9.0+PTX"
    result = []
    for item in re.split(r"[;, ]+", spelled.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", item)
        if not match:
            sys.exit(f"reidfast: expected TORCH_CUDA_ARCH_LIST like '8.0;9.0a+PTX', got {spelled!r}")
        major, minor, suffix, ptx = match.groups()
        result.append(f"{major}{minor}{suffix}" + ("" if ptx else "-real"))
    return ";".join(result)


def decide_cuda(torch) -> tuple[bool, str]:
    """Whether to compile CUDA, and the reason in words (kept for `reidfast info`)."""
    wish = os.environ.get("REIDFAST_CUDA", "auto").lower()
    nvcc = find_nvcc()
    if wish not in ("auto", "0", "1"):
        sys.exit(f"reidfast: expected REIDFAST_CUDA to be auto, 0 or 1, got {wish!r}")
    if wish == "0":
        return False, "REIDFAST_CUDA=0 when this build was made"
    if wish == "1":
        if nvcc is None:
            sys.exit(
                "reidfast: REIDFAST_CUDA=1 but no nvcc was found: looked in CUDA_HOME, /usr/local/cuda/bin and PATH. "
                "Install the CUDA toolkit or set CUDA_HOME, or build with REIDFAST_CUDA=0."
            )
        return True, f"REIDFAST_CUDA=1, {nvcc_version(nvcc)}"
    if torch.version.cuda is None:
        return False, f"torch {torch.__version__} is a CPU build (REIDFAST_CUDA=1 compiles CUDA all the same)"
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


class CMakeBuild(build_ext):
    """Configures and builds with CMake; writes reidfast/_build_info.json beside the module."""

    def run(self):
        target = Path(self.build_lib) / "reidfast" if not self.inplace else ROOT / "reidfast"
        target.mkdir(parents=True, exist_ok=True)
        if os.environ.get("REIDFAST_TARGET"):
            import torch

            self.build_native(torch, decide_cuda(torch)[0], target)
            return
        wish = os.environ.get("REIDFAST_NATIVE", "auto").lower()
        info = {"native": False, "cuda": False, "native_reason": "", "cuda_reason": ""}
        if wish == "0":
            info["native_reason"] = "REIDFAST_NATIVE=0 when this build was made"
        else:
            try:
                import torch

                with_cuda, info["cuda_reason"] = decide_cuda(torch)
                self.build_native(torch, with_cuda, target)
                info |= {"native": True, "cuda": with_cuda, "torch": torch.__version__}
            except (OSError, subprocess.CalledProcessError, ImportError) as error:
                if wish == "1" or os.environ.get("REIDFAST_CUDA") == "1":
                    raise
                reason = f"the compiled part could not be built: {error}"
                if isinstance(error, subprocess.CalledProcessError):
                    reason = "the compiled part could not be built: CMake or the compiler failed"
                info["native_reason"] = reason
                print(
                    f"WARNING: reidfast: {reason}. Installing without it: every op works through plain PyTorch.",
                    file=sys.stderr,
                )
        (target / "_build_info.json").write_text(json.dumps(info, indent=1) + "\n")

    def build_native(self, torch, with_cuda: bool, target: Path) -> None:
        import pybind11
        from torch.utils.cpp_extension import include_paths

        cmake = shutil.which("cmake") or sys.exit("reidfast: cmake was not found; pip install cmake ninja")
        build = Path(
            os.environ.get(
                "REIDFAST_BUILD_DIR",
                ROOT / "build" / f"cmake-{'cuda' if with_cuda else 'cpu'}-{sys.implementation.cache_tag}",
            )
        )
        build.mkdir(parents=True, exist_ok=True)
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        arguments = [
            f"-DREIDFAST_TORCH_INCLUDES={';'.join(include_paths())}",
            f"-DREIDFAST_TORCH_LIB={Path(torch.__file__).parent / 'lib'}",
            f"-DREIDFAST_TORCH_CXX11_ABI={int(getattr(torch._C, '_GLIBCXX_USE_CXX11_ABI', True))}",
            f"-DREIDFAST_PYTHON_INCLUDE={sysconfig.get_path('include')}",
            f"-DREIDFAST_PYBIND11_INCLUDE={pybind11.get_include()}",
            f"-DREIDFAST_EXT_SUFFIX={suffix}",
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
        quiet = {"stdout": subprocess.DEVNULL} if not self.verbose else {}
        subprocess.run([cmake, "-S", str(ROOT), "-B", str(build), *arguments], check=True, **quiet)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 2)
        goal = os.environ.get("REIDFAST_TARGET") or "_C"
        subprocess.run([cmake, "--build", str(build), "--target", goal, "-j", jobs], check=True)
        if goal != "_C":
            return
        for old in target.glob("_C*.so"):
            old.unlink()
        # Copy beside, then rename: a running process keeps its old module, nobody sees half a file.
        partial = target / f"_C.partial{suffix}"
        shutil.copy2(build / f"_C{suffix}", partial)
        partial.rename(target / f"_C{suffix}")

    def get_outputs(self):
        return []


setup(ext_modules=[Extension("reidfast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
