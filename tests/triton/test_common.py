# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The helpers of Triton kernels: exact in the interpreter, and machine code for three architectures."""

import ast
import importlib
import os
import sys
from pathlib import Path

import pytest
import torch
from triton_aot import Aot, compile_all

triton = pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.triton
sys.path.insert(0, os.path.dirname(__file__))

import kernels  # noqa: E402

from reidfast.ops.triton._common import INTERPRETED, TRITON_TYPES, bucket  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_mode():
    assert (not torch.cuda.is_available()) == INTERPRETED


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_product(dtype):
    m, n, k = 19, 35, 50
    x, w = torch.randn(m, k).to(DEVICE, dtype), torch.randn(n, k).to(DEVICE, dtype)
    out = torch.empty(m, n, dtype=dtype, device=DEVICE)
    grid = (triton.cdiv(m, 32), triton.cdiv(n, 32))
    kernels.product_kernel[grid](x, w, out, m, n, k, BLOCK=32, BLOCK_K=32, PRECISION="ieee", DTYPE=TRITON_TYPES[dtype])
    exact = x.double() @ w.double().t()
    error = (out.double() - exact).abs().max() / exact.abs().max()
    assert error < torch.finfo(dtype).eps


def test_narrow_rounds_to_nearest_even():
    x = torch.cat([torch.randn(2000), torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 3.4e38, 1e-30])])
    ties = (x.to(torch.bfloat16).view(torch.int16).int() * 65536 + 32768).view(torch.float32)
    x = torch.cat([x, ties]).to(DEVICE)
    out = torch.empty(len(x), dtype=torch.bfloat16, device=DEVICE)
    kernels.narrow_kernel[(1,)](x, out, len(x), BLOCK=4096, DTYPE=TRITON_TYPES[torch.bfloat16])
    want = x.to(torch.bfloat16)
    assert torch.equal(out.isnan(), want.isnan())
    assert torch.equal(out[~want.isnan()].view(torch.int16), want[~want.isnan()].view(torch.int16))


@pytest.mark.parametrize("place,want", [("0", [1]), ("1", [2]), ("9", [2]), ("", [1, 2])])
def test_one_place_of_the_lists_can_be_asked_for(monkeypatch, place, want):
    import triton

    from reidfast.ops.triton import _common

    monkeypatch.setattr(_common, "INTERPRETED", False)
    monkeypatch.setenv("REIDFAST_AUTOTUNE", place)
    configs = [triton.Config({"BLOCK": n}, num_warps=4) for n in (1, 2)]
    tuned = _common.autotune(configs, ["n"])(_common.narrow)
    assert [c.kwargs["BLOCK"] for c in tuned.configs] == want


def test_a_place_that_is_no_number_is_refused(monkeypatch):
    from reidfast.ops.triton import _common

    monkeypatch.setattr(_common, "INTERPRETED", False)
    monkeypatch.setenv("REIDFAST_AUTOTUNE", "best")
    with pytest.raises(ValueError, match="REIDFAST_AUTOTUNE: expected a place"):
        _common.autotune([], ["n"])


@pytest.mark.parametrize("module", ["_common", "diverse_attention", "memory", "ranking"])
def test_no_jitted_function_has_defaults(module):
    """Triton 3.6 takes the default of a jitted function for an ordinary value, not for a constant."""
    source = importlib.import_module(f"reidfast.ops.triton.{module}").__file__
    functions = [n for n in ast.walk(ast.parse(Path(source).read_text())) if isinstance(n, ast.FunctionDef)]
    jitted = [f for f in functions if any("jit" in ast.unparse(d) for d in f.decorator_list)]
    assert jitted and not [f.name for f in jitted if f.args.defaults or f.args.kw_defaults]


def test_bucket():
    assert [bucket(n) for n in (0, 1, 3, 4, 12_936)] == [1, 1, 4, 4, 16384]


def test_compiles_to_machine_code():
    signature = {"x": "*bf16", "w": "*bf16", "out": "*bf16", "m": "i32", "n": "i32", "k": "i32"}
    constexprs = {"BLOCK": 64, "BLOCK_K": 64, "PRECISION": "ieee", "DTYPE": "dtype:bf16"}
    case = Aot("kernels", "product_kernel", signature, constexprs, divisible=("x", "w", "out", "n", "k"))
    built = compile_all([case])
    assert [b.architecture for b in built] == [80, 90, 100]
    assert all(b.spills == 0 for b in built)
    assert built[0].mma and built[1].wgmma and built[2].tcgen05


def test_a_kernel_that_does_not_compile_says_why():
    with pytest.raises(AssertionError, match=r"no type and no value given for \['w', 'out'"):
        compile_all([Aot("kernels", "product_kernel", {"x": "*fp32"}, {"BLOCK": 64})], [90])
