# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Compile Triton kernels to machine code without a GPU, in a process of its own (this one may be interpreting).

from triton_aot import Aot, compile_all
for built in compile_all([Aot("reidfast.ops.triton.memory", "match_kernel",
                              {"x": "*fp32", "n": "i32"}, {"BLOCK": 64}, num_warps=4)]):
    assert built.spills == 0
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Aot:
    """One kernel to compile.

    Args:
        module: Where it stands.
        kernel: Its name; an autotuned kernel is taken without its tuner.
        signature: Type of every argument that is no constexpr, as Triton spells it ("*bf16", "i64", "fp32").
        constexprs: Value of every constexpr argument; a string "dtype:bf16" stands for tl.bfloat16.
        num_warps: Warps of a program.
        num_stages: Depth of the software pipeline.
        divisible: Arguments that are multiples of 16 (aligned pointers, row strides): what wide loads need.
    """

    module: str
    kernel: str
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    divisible: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Built:
    """What came out for one architecture."""

    kernel: str
    architecture: int
    registers: int
    spills: int
    shared: int
    wgmma: bool
    tcgen05: bool
    mma: bool


def compile_all(kernels: Sequence[Aot], architectures: Sequence[int] = ARCHITECTURES) -> list[Built]:
    """Compile every kernel for every architecture; AssertionError with the compiler's words where one fails."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    own = [str(ROOT / folder) for folder in ("", "tests", "tests/triton")]
    environment["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), *own])
    job = json.dumps({"kernels": [asdict(k) for k in kernels], "architectures": list(architectures)})
    done = subprocess.run(
        [sys.executable, __file__], input=job, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return [Built(**built) for built in json.loads(done.stdout.rsplit("BUILT", 1)[1])]


def _compile(job: dict[str, Any]) -> list[dict[str, Any]]:
    import importlib
    import re
    import tempfile

    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32, "fp64": tl.float64}
    cuobjdump = next(Path(triton.__file__).parent.rglob("cuobjdump"))
    results = []
    for entry in job["kernels"]:
        kernel = getattr(importlib.import_module(entry["module"]), entry["kernel"])
        while not hasattr(kernel, "arg_names") or not hasattr(kernel, "params"):
            kernel = kernel.fn
        constexprs = {n: types.get(str(v).removeprefix("dtype:"), v) for n, v in entry["constexprs"].items()}
        signature = {n: entry["signature"].get(n, "constexpr") for n in kernel.arg_names}
        missing = [n for n, t in signature.items() if t == "constexpr" and n not in constexprs]
        if missing:
            raise SystemExit(f"{entry['kernel']}: no type and no value given for {missing}")
        attributes = {(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in entry["divisible"]}
        keys = {(kernel.arg_names.index(n),): value for n, value in constexprs.items()}
        for architecture in job["architectures"]:
            source = ASTSource(kernel, signature, keys, attributes)
            options = {"num_warps": entry["num_warps"], "num_stages": entry["num_stages"]}
            built = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
            with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
                cubin.write(built.asm["cubin"])
                cubin.flush()
                usage = subprocess.run([cuobjdump, "--dump-resource-usage", cubin.name], capture_output=True, text=True)
            numbers = {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage.stdout)}
            ptx = built.asm["ptx"]
            results.append(
                {
                    "kernel": entry["kernel"],
                    "architecture": architecture,
                    "registers": numbers["REG"],
                    "spills": numbers["STACK"] + numbers["LOCAL"],
                    "shared": built.metadata.shared,
                    "wgmma": "wgmma" in ptx,
                    "tcgen05": "tcgen05" in ptx,
                    "mma": "mma.sync" in ptx,
                }
            )
    return results


if __name__ == "__main__":
    print("BUILT" + json.dumps(_compile(json.load(sys.stdin))))
