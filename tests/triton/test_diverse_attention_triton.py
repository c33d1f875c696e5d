# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""diverse_attention's Triton kernels against the float64 reference, and as machine code for three architectures."""

import pytest
import torch
from triton_aot import Aot, compile_all

import reidfast
from reidfast.ops.reference.diverse_attention import diverse_attention as reference
from reidfast.testing import assert_no_worse, nan_poison, shape_id

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.triton

from reidfast.ops.triton import diverse_attention as kernels  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES_AND_FLOAT = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [  # B, D, K, spatial: one cell; a part of a block; blocks of cells and of channels; more than 16 maps
    (1, 1, 1, (1,)),
    (2, 70, 6, (5, 4)),
    (1, 67, 3, (10, 13)),
    (1, 20, 17, (8, 4)),
]


class Kernels(torch.autograd.Function):
    """The launchers as autograd calls them, on whatever device the tests run."""

    @staticmethod
    def forward(ctx, x, z):
        ctx.save_for_backward(x, z)
        ctx.set_materialize_grads(False)
        return kernels.diverse_attention(x, z)

    @staticmethod
    def backward(ctx, *grads):
        return kernels.diverse_attention_backward(*grads, *ctx.saved_tensors, *ctx.needs_input_grad)


def make(b, d, k, spatial, dtype=torch.float32, *, last=False, scale=2.0):
    generator = torch.Generator().manual_seed(b + d + k)
    x = torch.randn(b, d, *spatial, generator=generator).to(DEVICE, dtype)
    z = (scale * torch.randn(b, k, *spatial, generator=generator)).to(DEVICE, dtype)
    return (x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x), z


def upstream(x, z):
    cells = z.shape[2:].numel()
    shapes = [(len(x), z.shape[1], x.shape[1]), (len(x), z.shape[1], cells), (len(x),)]
    dtypes = [x.dtype, x.dtype, torch.promote_types(x.dtype, torch.float32)]
    return [torch.randn(s).to(DEVICE, t) for s, t in zip(shapes, dtypes, strict=True)]


def run(function, x, z, grads):
    """The three outputs and both gradients; an upstream gradient of None leaves that output unused."""
    x, z = x.detach().requires_grad_(), z.detach().requires_grad_()
    out = function(x, z)
    used = [(o, g.to(o)) for o, g in zip(out, grads, strict=True) if g is not None]
    return (*out, *torch.autograd.grad([o for o, _ in used], (x, z), [g for _, g in used], allow_unused=True))


def check(x, z, grads, **tolerance):
    got = run(Kernels.apply, x, z, grads)
    exact = run(reference, x.double(), z.double(), grads)
    assert_no_worse(got, exact, run(reference, x, z, grads), **tolerance)
    return got


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", HALVES_AND_FLOAT, ids=shape_id)
@pytest.mark.parametrize("b,d,k,spatial", SHAPES, ids=shape_id)
def test_matches_reference(b, d, k, spatial, dtype, last):
    x, z = make(b, d, k, spatial, dtype, last=last)
    got = check(x, z, upstream(x, z))
    assert [t.dtype for t in got] == [dtype, dtype, torch.float32, dtype, dtype]
    assert got[3].stride() == x.stride()


@pytest.mark.parametrize("used", [(0,), (1,), (2,)], ids=str)
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)], ids=str)
def test_each_gradient_alone(used, needs):
    x, z = make(1, 21, 4, (5, 3))
    grads = [g if i in used else None for i, g in enumerate(upstream(x, z))]
    got = kernels.diverse_attention_backward(*grads, x, z, *needs)
    plain = kernels.plain_backward(*grads, x, z, *needs)
    want = run(reference, x.double(), z.double(), grads)[3:]
    for mine, simple, exact, need in zip(got, plain, want, needs, strict=True):
        if not need:
            assert mine is None and simple is None
            continue
        exact = torch.zeros_like(mine) if exact is None else exact
        torch.testing.assert_close(mine.double(), exact.double(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(simple.double(), exact.double(), rtol=1e-5, atol=1e-5)


def test_several_parts_of_channels(monkeypatch):
    x, z = make(1, 150, 3, (7, 3))
    grads = upstream(x, z)
    assert kernels.channels_per_part(1, 150) == 64
    check(x, z, grads)
    monkeypatch.setattr(kernels, "channels_per_part", lambda batch, dim: 128)
    check(x, z, grads)


def test_gradient_is_finite_at_zero_attention():
    x, z = make(2, 8, 3, (6,))
    z[0, 0, 1:3] = -200.0  # exp underflows to zero
    z[1, 1, 4] = -torch.inf
    z[1, 2, 0] = z[1, 0, 0] = 300.0  # two maps on one cell
    got = check(x, z, upstream(x, z))
    assert (got[1][0, 0, 1:3] == 0).all() and all(bool(t.isfinite().all()) for t in got)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's, under the interpreter
@pytest.mark.parametrize("cells", [6, 70])
def test_nan_and_masked_rows_stay_where_they_are(cells):
    x, z = make(2, 4, 3, (cells,))
    z[0, 1, -1] = torch.nan
    z[1, 2] = -torch.inf
    z[1, 0, : cells - 1] = -torch.inf  # one cell left, in the last block
    got, want = kernels.diverse_attention(x, z), reference(x, z)
    torch.testing.assert_close(got, want, equal_nan=True)
    assert got[1][1, 0, -1] == 1 and bool(got[1][1, 1].isfinite().all())


def test_overlap_of_equal_and_single_maps():
    x = torch.randn(1, 3, 4, device=DEVICE)
    equal = torch.randn(1, 1, 4, device=DEVICE).expand(1, 5, 4)
    torch.testing.assert_close(kernels.diverse_attention(x, equal)[2].cpu(), torch.tensor([20.0]))
    assert kernels.diverse_attention(x, equal[:, :1])[2].item() == 0


def test_strided_maps():
    x, z = make(2, 12, 4, (6, 10))
    for a, b in ((x[:, ::2], z), (x[..., 2:8], z[..., 2:8]), (x[:1].expand(2, -1, -1, -1), z[:, :2])):
        check(a, b, upstream(a, b))


def test_empty_inputs():
    for b, d, k, cells in ((0, 3, 2, 4), (2, 0, 2, 4), (2, 3, 0, 4), (2, 3, 2, 0)):
        x, z = torch.randn(b, d, cells, device=DEVICE), torch.randn(b, k, cells, device=DEVICE)
        got = run(Kernels.apply, x, z, upstream(x, z))
        want = run(reference, x, z, upstream(x, z))
        assert [t.shape for t in got] == [t.shape for t in want]
        torch.testing.assert_close(got[:3], want[:3])


@pytest.mark.parametrize("k,dtype", [(33, torch.float32), (3, torch.float64)], ids=shape_id)
def test_what_the_kernels_do_not_take_is_plain_pytorch(k, dtype):
    x, z = make(2, 5, k, (3, 4), dtype, last=True)
    assert not kernels.served(x, z)
    got = check(x, z, upstream(x, z), ulps=64)
    assert got[3].stride() == x.stride()


def test_every_output_is_written_and_twice_the_same():
    x, z = make(1, 67, 3, (10, 13), last=True)
    grads = upstream(x, z)
    with nan_poison():
        one, two = (run(Kernels.apply, x, z, grads) for _ in range(2))
    assert all(bool(t.isfinite().all()) for t in one)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_backward_checks_what_would_read_out_of_bounds():
    x, z = make(2, 5, 3, (4,))
    with pytest.raises(RuntimeError, match=r"expected grad_pooled \(2, 3, 5\), got \(2, 3, 4\)"):
        kernels.diverse_attention_backward(torch.ones(2, 3, 4), None, None, x, z, True, True)


def test_serves_cuda():
    assert reidfast.backends()["diverse_attention"]["cuda"]["serves"] == "triton"
    for op in ("reidfast::diverse_attention", "reidfast::diverse_attention_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA")


def on_device(name, seen):
    """A launcher for CPU tensors, which notes that it was called."""

    def call(*args):
        seen.append(name)
        results = getattr(kernels, name)(*(a.to(DEVICE) if torch.is_tensor(a) else a for a in args))
        return tuple(None if t is None else t.cpu() for t in results)

    return call


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)], ids=str)
def test_autograd_of_the_dispatcher_op_runs_the_kernels(needs):
    """The gradient above the launchers, which stand in for the CPU kernels meanwhile."""
    seen = []
    op = reidfast.implementations("diverse_attention")["native"]
    x, z = (t.cpu().requires_grad_(need) for t, need in zip(make(2, 21, 3, (5, 3)), needs, strict=True))
    want = torch.autograd.grad(sum(o.sin().sum() for o in reference(x, z)), [t for t in (x, z) if t.requires_grad])
    with torch.library._scoped_library("reidfast", "IMPL") as library:
        for name in ("diverse_attention", "diverse_attention_backward"):
            library.impl(name, on_device(name, seen), "CPU", allow_override=True)
        got = torch.autograd.grad(sum(o.sin().sum() for o in op(x, z)), [t for t in (x, z) if t.requires_grad])
    torch.testing.assert_close(got, want)
    assert seen == ["diverse_attention", "diverse_attention_backward"]
    op(x, z)
    assert len(seen) == 2  # the CPU's own kernel is back


MAP = dict.fromkeys(("dim", "maps", "cells"), "i32") | dict.fromkeys(("x_b", "x_d", "x_l"), "i32")
GRAD = dict.fromkeys(("grad_b", "grad_d", "grad_l"), "i32")


def compiled(dtype, maps, block, one, last):
    """The three kernels for contiguous or channels_last maps: Triton makes a stride of 1 a constant."""
    kind, wide = f"*{dtype}", "*fp32"
    shared = {"MAPS": maps, "BLOCK_L": block, "ONE": one, "DTYPE": f"dtype:{dtype}"}
    unit = "_d" if last else "_l"
    aligned = ("x", "z", "dim", "cells", "x_b", "x_l" if last else "x_d")
    ones = {"x" + unit: 1}
    module = "reidfast.ops.triton.diverse_attention"
    strides = {k: v for k, v in MAP.items() if k not in ones}
    yield Aot(
        module,
        "forward_kernel",
        {"x": kind, "z": kind, "pooled": kind, "attention": kind, "overlap": wide} | strides,
        shared | ones | {"BLOCK_D": 128},
        divisible=(*aligned, "pooled", "attention", "overlap"),
    )
    ones |= {"grad" + unit: 1}
    strides |= {k: v for k, v in GRAD.items() if k not in ones}
    yield Aot(
        module,
        "backward_map_kernel",
        {"x": kind, "z": kind, "grad_pooled": kind, "grad_x": kind, "share": wide} | strides,
        shared | ones | {"CHUNK": 256, "BLOCK_D": kernels.BLOCK_D, "NEEDS_X": True, "NEEDS_Z": True},
        divisible=(*aligned, "grad_pooled", "grad_x", "share", "grad_b", "grad_l" if last else "grad_d"),
    )
    yield Aot(
        module,
        "backward_logits_kernel",
        {"z": kind, "share": wide, "grad_attention": kind, "grad_overlap": wide, "grad_z": kind}
        | dict.fromkeys(("parts", "maps", "cells"), "i32"),
        shared | {"POOLED": True, "ATTENTION": True, "OVERLAP": True},
        divisible=("z", "share", "grad_attention", "grad_overlap", "grad_z", "cells"),
    )


def test_compiles_to_machine_code():
    cases = [*compiled("fp32", 16, 32, True, False), *compiled("bf16", 16, 32, False, True)]
    built = compile_all(cases)
    assert {b.architecture for b in built} == {80, 90, 100} and len(built) == 18
    assert all(b.spills == 0 for b in built), [b for b in built if b.spills]
    assert all(b.mma for b in built if b.kernel != "backward_logits_kernel")  # tensor cores
    assert all(b.shared <= 48 * 1024 for b in built)
