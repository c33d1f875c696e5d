# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Backend choice: what serves what, overrides, and a package without its compiled part."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import reidfast
from reidfast.ops._backends import ENTRIES


def python(code, cwd=None, **env):
    command = [sys.executable, "-W", "always", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, cwd=cwd)


def test_every_public_op_is_registered_and_has_a_reference():
    functions = {name for name in reidfast.ops.__all__ if not name[0].isupper()}
    assert set(ENTRIES) == functions | {"evaluation"} == set(reidfast.backends())
    for op in ENTRIES:
        names = reidfast.implementations(op)
        assert next(iter(names)) == "reference" and "native" in names
        assert reidfast.backends()[op]["cpu"]["serves"] == "native"


def test_table_gives_a_reason_for_everything_that_cannot_run():
    for row in reidfast.backends().values():
        assert row["cpu"]["triton"] == "Triton kernels need a CUDA device"
        for device in ("cpu", "cuda"):
            assert all(row[device].values())


def serving():
    return {row["cpu"]["serves"] for row in reidfast.backends().values()}


def test_use_backend_is_scoped_and_checked():
    with reidfast.use_backend("reference"):
        assert serving() == {"reference"}
        with pytest.raises(ZeroDivisionError), reidfast.use_backend("native"):
            assert serving() == {"native"}
            raise ZeroDivisionError
        assert serving() == {"reference"}
    assert serving() == {"native"}
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


USES_AN_OP = """
import torch, reidfast
x = torch.randn(4, 3, requires_grad=True)
reidfast.ops.set_pool(x, torch.rand(4), torch.tensor([0, 1, 4])).sum().backward()
print(reidfast.backends()["set_pool"]["cpu"]["serves"], x.grad is not None)
"""


def test_without_the_native_library_everything_works_and_one_warning_says_so(tmp_path):
    copy = tmp_path / "reidfast"
    shutil.copytree(Path(reidfast.__file__).parent, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = python(USES_AN_OP, PYTHONPATH=str(tmp_path), cwd=tmp_path)
    assert done.stdout.split() == ["reference", "True"], done.stdout + done.stderr
    assert done.stderr.count("reidfast runs without its native part") == 1


def test_without_the_python_module_all_ops_are_native():
    done = python("import sys; sys.modules['reidfast._C'] = None" + USES_AN_OP)
    assert done.stdout.split() == ["native", "True"], done.stdout + done.stderr
    assert "RuntimeWarning" not in done.stderr


def test_importing_is_quick_on_torch_and_pulls_no_extras():
    done = python(
        "import sys, reidfast; print({'matplotlib', 'jinja2', 'lightning', 'cupy', 'sklearn'} & set(sys.modules))"
    )
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
