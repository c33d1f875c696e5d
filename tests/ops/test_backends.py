# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Backend choice: what serves what, overrides, and a package without its compiled part."""

import os
import subprocess
import sys

import pytest
import torch

import reidfast
from reidfast.ops._backends import _OPS


def python(code, **env):
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, env=os.environ | env
    )


def test_every_public_op_is_registered_and_has_a_reference():
    functions = {name for name in reidfast.ops.__all__ if not name[0].isupper()}
    assert functions <= set(_OPS)
    assert functions | {"evaluation"} == set(_OPS)  # which is one entry, whatever its steps are called
    for op in _OPS:
        names = reidfast.implementations(op)
        assert next(iter(names)) == "reference" and "native" in names
        assert reidfast.backends()[op]["cpu"]["serves"] == "native"


def test_table_gives_a_reason_for_everything_that_cannot_run():
    for row in reidfast.backends().values():
        assert row["cpu"]["triton"] == "Triton kernels need a CUDA device"
        for device in ("cpu", "cuda"):
            assert all(row[device].values())


def test_use_backend_is_scoped_and_checked():
    op = _OPS["set_pool"]
    with reidfast.use_backend("reference"):
        assert op.serving("cpu") == "reference"
        with pytest.raises(ZeroDivisionError), reidfast.use_backend("native"):
            assert op.serving("cpu") == "native"
            raise ZeroDivisionError
        assert op.serving("cpu") == "reference"
    assert op.serving("cpu") == "native"
    with pytest.raises(ValueError, match="use_backend: expected one of native, triton, reference, got 'cuda'"):
        reidfast.use_backend("cuda").__enter__()


def test_a_backend_that_cannot_serve_says_why():
    x, z = torch.randn(2, 3), torch.rand(2)
    with reidfast.use_backend("triton"), pytest.raises(RuntimeError, match="'triton' cannot serve cpu"):
        reidfast.ops.set_pool(x, z)


def test_implementations_rejects_unknown_ops():
    with pytest.raises(ValueError, match="implementations: expected one of .*set_pool.*, got 'pool'"):
        reidfast.implementations("pool")


def test_environment_variable():
    done = python(
        "import reidfast; print(reidfast.backends()['set_pool']['cpu']['serves'])", REIDFAST_BACKEND="reference"
    )
    assert done.stdout.strip() == "reference", done.stderr
    done = python("import reidfast", REIDFAST_BACKEND="fast")
    assert done.returncode and "REIDFAST_BACKEND: expected one of native, triton, reference, got 'fast'" in done.stderr


def test_without_the_compiled_part_everything_works_and_one_warning_says_so():
    code = """
import sys
sys.modules["reidfast._C"] = None
import torch, reidfast
x = torch.randn(4, 3, requires_grad=True)
reidfast.ops.set_pool(x, torch.rand(4), torch.tensor([0, 1, 4])).sum().backward()
print(reidfast.backends()["set_pool"]["cpu"])
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "'serves': 'reference'" in done.stdout
    assert done.stderr.count("works without its compiled part") == 1


def test_importing_is_quick_on_torch_and_pulls_no_extras():
    done = python(
        "import sys, reidfast; print({'matplotlib', 'jinja2', 'lightning', 'cupy', 'sklearn'} & set(sys.modules))"
    )
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
