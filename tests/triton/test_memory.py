# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The Triton kernels of memory_match and memory_loss against the float64 references, and as machine code."""

import pytest
import torch
from torch.nn.functional import normalize
from triton_aot import Aot, compile_all

import reidfast
from reidfast.ops.reference.memory_loss import memory_loss as loss_reference
from reidfast.ops.reference.memory_match import memory_match as match_reference
from reidfast.testing import assert_no_worse, shape_id

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.triton

from reidfast.ops.triton import memory  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
METRICS = ("sqeuclidean", "dot")
SHAPES = [((0, 3, 50, 5), 1), ((2, 19, 150, 24), 4), ((0, 5, 140, 300), 3)]  # M (0: the 2-D form), B, N, d; k


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Several pieces of tiny banks, so that merging is tested; eight programs of the first kernel at most."""
    monkeypatch.setattr(memory, "_MIN_PIECE", 32)
    monkeypatch.setattr(memory, "_PROGRAMS", 8)


def problem(shape, dtype=torch.float32, seed=0):
    parts, queries, rows, d = shape
    generator = torch.Generator().manual_seed(seed)
    lead = (parts,) if parts else ()
    x = normalize(torch.randn(*lead, queries, d, generator=generator), dim=-1)
    bank = normalize(torch.randn(*lead, rows, d, generator=generator), dim=-1)
    targets = torch.randint(0, rows, (queries,), generator=generator)
    exclude = torch.where(torch.arange(queries) % 3 == 0, -1, (targets + 1) % rows)
    return (*(t.to(DEVICE, dtype) for t in (x, bank)), *(t.to(DEVICE) for t in (targets, exclude)))


def run_loss(x, bank, k, targets, scale, metric, exclude):
    """Loss and gradients, through the four functions that the dispatcher calls."""
    needs = [True, targets is not None]
    loss, state, direction = memory.memory_loss_forward(x, bank, k, targets, scale, metric, exclude, *needs)
    upstream = torch.linspace(-1, 2, loss.numel()).view(loss.shape).to(loss)
    kept = (bank, loss, state) if targets is not None else (None, None, None)
    return loss, *memory.memory_loss_backward(upstream, x, *kept, direction, targets, scale, metric, exclude, *needs)


def run_match(x, bank, k, scale, metric, exclude):
    needs = [True, True]
    lse, logits, rows, *saved = memory.memory_match_forward(x, bank, k, scale, metric, exclude, *needs)
    up = torch.linspace(-1, 2, lse.numel()).view(lse.shape).to(lse)
    up_k = torch.linspace(2, -1, logits.numel()).view(logits.shape).to(logits)
    grads = memory.memory_match_backward(up, up_k, x, bank, rows, *saved, scale, metric, exclude, *needs)
    return lse, logits, rows, *grads


def eager(reference, x, bank, *args, double):
    x, bank = (t.double() if double else t.clone() for t in (x, bank))
    out = reference(x.requires_grad_(), bank.requires_grad_(), *args)
    if isinstance(out, tuple):
        up = torch.linspace(-1, 2, out[0].numel()).view(out[0].shape).to(out[0])
        up_k = torch.linspace(2, -1, out[1].numel()).view(out[1].shape).to(out[1])
        return *out, *torch.autograd.grad(out[:2], (x, bank), (up, up_k))
    up = torch.linspace(-1, 2, out.numel()).view(out.shape).to(out)
    return out, *torch.autograd.grad(out, (x, bank), up, allow_unused=True)


CASES = [(*case, torch.float32) for case in SHAPES] + [(*SHAPES[1], t) for t in (torch.bfloat16, torch.float16)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("mode", ["k", "targets"])
@pytest.mark.parametrize("shape,k,dtype", CASES, ids=shape_id)
def test_loss(shape, k, mode, metric, dtype):
    x, bank, targets, exclude = problem(shape, dtype)
    args = (k, None, 9.0, metric, exclude) if mode == "k" else (None, targets, 9.0, metric, exclude)
    got = run_loss(x, bank, *args)
    assert got[0].dtype == torch.float32 and got[1].dtype == dtype and (mode == "k" or got[2].dtype == dtype)
    assert_no_worse(
        got,
        eager(loss_reference, x, bank, *args, double=True),
        eager(loss_reference, x, bank, *args, double=False),
        ulps=16,
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape,k", SHAPES, ids=shape_id)
def test_match(shape, k, metric):
    x, bank, _, exclude = problem(shape, seed=1)
    args = (k, 9.0, metric, exclude)
    exact = eager(match_reference, x, bank, *args, double=True)
    assert_no_worse(run_match(x, bank, *args), exact, eager(match_reference, x, bank, *args, double=False), ulps=16)


def test_match_of_mixed_types():
    x, bank, _, _ = problem((0, 5, 90, 24))
    bank = bank.bfloat16()
    args = (3, 4.0, "sqeuclidean", None)
    wide = bank.float()
    exact = eager(match_reference, x, wide, *args, double=True)
    plain = eager(match_reference, x, wide, *args, double=False)
    *got, grad_bank = run_match(x, bank, *args)
    assert_no_worse(got, exact[:-1], plain[:-1], ulps=16)
    assert_no_worse(grad_bank, exact[-1], plain[-1].bfloat16())


@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_lowest_row(metric):
    generator = torch.Generator().manual_seed(4)
    bank = torch.randint(-2, 3, (6, 5), generator=generator)[torch.randint(0, 6, (140,), generator=generator)].float()
    x = torch.randint(-2, 3, (5, 5), generator=generator).float()
    _, logits, rows, *_ = memory.memory_match_forward(x.to(DEVICE), bank.to(DEVICE), 9, 1.0, metric, None, False, False)
    exact = -(x[:, None] - bank).square().sum(-1) if metric == "sqeuclidean" else x @ bank.T
    values, order = exact.sort(dim=1, descending=True, stable=True)
    assert torch.equal(rows.cpu(), order[:, :9]) and torch.equal(logits.cpu(), values[:, :9])


def test_rows_pushed_out_go_over_to_the_rest():
    """Ever better rows: every tile pushes all that is kept out again."""
    bank = torch.linspace(4, 0.01, 150).unsqueeze(1) * torch.ones(1, 3)
    x = torch.zeros(2, 3)
    args = (4, None, 0.3, "sqeuclidean", None)
    got = run_loss(x.to(DEVICE), bank.to(DEVICE), *args)
    assert_no_worse(
        got,
        eager(loss_reference, x, bank, *args, double=True),
        eager(loss_reference, x, bank, *args, double=False),
        ulps=16,
    )


def test_every_usable_row_among_the_best():
    x, bank, _, _ = problem((0, 3, 40, 4))
    loss, grad_x, _ = run_loss(x, bank, 40, None, 3.0, "sqeuclidean", None)
    assert not bool(loss.any()) and not bool(grad_x.any())
    exclude = torch.tensor([0, 7, 39], device=DEVICE)
    lse, logits, rows, *_ = memory.memory_match_forward(x, bank, 40, 3.0, "dot", exclude, False, False)
    assert rows[:, 39].tolist() == [-1] * 3 and logits[:, 39].tolist() == [-torch.inf] * 3  # no row is left for it
    torch.testing.assert_close(logits.logsumexp(-1), lse)


@pytest.mark.parametrize("scale", [0.0, -4.0, 3000.0])
def test_any_scale_is_safe(scale):
    x, bank, _, exclude = problem((0, 5, 90, 8))
    args = (3, None, scale, "sqeuclidean", exclude)
    got = run_loss(x, bank, *args)
    assert_no_worse(
        got,
        eager(loss_reference, x, bank, *args, double=True),
        eager(loss_reference, x, bank, *args, double=False),
        ulps=16,
    )


def test_tiny_losses_do_not_vanish():
    bank = torch.tensor([[0.0, 0.0], [1.0, 1.0]], device=DEVICE)
    loss = run_loss(torch.zeros(1, 2, device=DEVICE), bank, 1, None, 25.0, "sqeuclidean", None)[0]
    torch.testing.assert_close(loss.cpu(), torch.tensor([-50.0]).exp(), rtol=1e-5, atol=0)


def test_nan():
    x, bank, _, _ = problem((0, 4, 70, 5))
    bank[7, 2] = torch.nan
    exclude = torch.tensor([7, 7, -1, 7], device=DEVICE)
    lse, _, rows, *_ = memory.memory_match_forward(x, bank, 3, 1.0, "dot", exclude, False, False)
    assert lse.isnan().tolist() == [False, False, True, False] and not bool((rows == 7).any())
    bank[7, 2], x[1, 0] = 0, torch.nan
    lse = memory.memory_match_forward(x, bank, 3, 1.0, "sqeuclidean", None, False, False)[0]
    assert lse.isnan().tolist() == [False, True, False, False]


def test_strides_and_empties():
    x, bank, targets, exclude = problem((2, 5, 40, 8))
    wide = torch.full((2, 80, 12), torch.nan, device=DEVICE)
    wide[:, ::2, 3:11] = bank
    args = (3, 2.0, "sqeuclidean", exclude)
    for a, b in zip(run_match(x, wide[:, ::2, 3:11], *args), run_match(x, bank, *args), strict=True):
        assert torch.equal(a, b)
    loss, grad_x, grad_bank = run_loss(x[:, :0], bank, None, targets[:0], 1.0, "dot", None)
    assert loss.shape == (2, 0) and grad_x.shape == (2, 0, 8) and not bool(grad_bank.any())


def test_refuses_what_it_has_no_kernel_for():
    x, bank, _, _ = problem((0, 3, 200, 4))
    with pytest.raises(NotImplementedError, match="got float64"):
        memory.memory_loss_forward(x.double(), bank.double(), 1, None, 1.0, "dot", None, False, False)
    with pytest.raises(NotImplementedError, match="k of at most 128 on CUDA, got k=129"):
        memory.memory_match_forward(x, bank, 129, 1.0, "dot", None, False, False)


@pytest.mark.filterwarnings("ignore:.*Overriding a previously registered kernel:UserWarning")
@pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for the CUDA key where there is no GPU")
def test_through_the_dispatcher_and_autograd():
    """The functions behind the compiled ops' autograd: on the CPU key, in place of the CPU kernels."""
    if reidfast.backends()["memory_loss"]["cpu"]["serves"] != "native":
        pytest.skip("needs the compiled part")
    calls = []
    library = torch.library.Library("reidfast", "IMPL")
    names = [f"memory_{op}_{way}" for op in ("match", "loss") for way in ("forward", "backward")]
    for name in names:
        function = getattr(memory, name)
        library.impl(name, lambda *a, f=function, n=name: (calls.append(n), f(*a))[1], "CPU", allow_override=True)
    try:
        x, bank, targets, exclude = problem((0, 4, 60, 6))
        for op, args in (("loss", (3, None)), ("loss", (None, targets)), ("match", (3,))):
            args = (*args, 5.0, "dot", exclude)
            reference = loss_reference if op == "loss" else match_reference
            got = eager(reidfast.implementations(f"memory_{op}")["native"], x, bank, *args, double=False)
            assert (got[-1] is None) == (op == "loss" and args[0] == 3)
            want = eager(reference, x, bank, *args, double=True)
            assert_no_worse(got, want, eager(reference, x, bank, *args, double=False), ulps=16)
    finally:
        library._destroy()
    assert sorted(set(calls)) == sorted(names)


def test_serves_cuda():
    for op in ("memory_match", "memory_loss"):
        table = reidfast.backends()[op]
        if table["cpu"]["serves"] == "native":  # autograd is the compiled part's
            assert table["cuda"]["serves"] == "triton"
            for way in ("forward", "backward"):
                assert torch._C._dispatch_has_kernel_for_dispatch_key(f"reidfast::{op}_{way}", "CUDA")


def kernels(kind, k):
    """The three kernels for banks of ``kind`` at PAUL's d = 256, for wide loads."""
    sizes = {n: "i32" for n in ("queries", "rows", "d", "part_stride", "row_stride")} | {"scale": "fp32"}
    rows = {"x": f"*{kind}", "bank": f"*{kind}"}
    keys = {"queries_key": "i32", "rows_key": "i32"}
    partials = {"best_logit": "*fp32", "best_row": "*i32"} | {n: "*fp32" for n in ("rest_max", "rest_sum", "rest_rows")}
    wide = ("x", "bank", "d", "part_stride", "row_stride", "rest_rows")
    modes = {"DOT": k == 0, "NATIVE": kind != "fp32", "PRECISION": "tf32x3", "BLOCK_D": 256, "BLOCK_B": 32}
    modes["BLOCK_K"] = 64 if kind != "fp32" else 32
    targets = {"EXCLUDE": True, "TARGETS": k == 0}
    select = modes | targets | {"K": k, "K2": 16, "ROWS": True, "HALF": kind != "fp32", "BLOCK_N": 32}
    outputs = {n: "*fp32" for n in ("loss", "lse", "topk_logits", "direction")}
    outputs |= {"state": "*fp64", "shares": "*fp64", "topk": "*i64"}
    finish = {"DOT": k == 0, "K": max(1, k), "K2": 16, "SPLITS": 22, "S2": 32, "C2": 256, "TARGETS": k == 0}
    finish |= {"LOSS": k == 0, "STATE": True, "ROWS": True, "BLOCK_D": 128, "CHUNK": 16}
    gradient = {n: "*fp32" for n in ("grad_lse", "pick_weights")} | {"state": "*fp64", "picks": "*i64"}
    gradient |= {"exclude": "*i64", "grad": f"*{kind}"}
    index = {"exclude": "*i64", "targets": "*i64"}
    of = "reidfast.ops.triton.memory"
    first = rows | index | partials | sizes | keys | {"piece": "i32", "blocks": "i32"}
    yield Aot(of, "select_kernel", first, select, num_warps=8, num_stages=2, divisible=wide)
    last = rows | {"targets": "*i64"} | partials | outputs | sizes
    yield Aot(of, "finish_kernel", last, finish, divisible=wide)
    back = modes | {"K": max(1, k), "EXCLUDE": True, "DTYPE": f"dtype:{kind}", "BLOCK_N": 32}
    yield Aot(of, "grad_bank_kernel", rows | gradient | sizes | keys, back, 8, 2, (*wide[:-1], "grad"))


@pytest.mark.parametrize("kind,k", [("fp32", 10), ("fp32", 0), ("bf16", 10)])
def test_compiles_to_machine_code(kind, k):
    built = compile_all(list(kernels(kind, k)))
    assert [b.architecture for b in built] == [80, 90, 100] * 3
    allowed = {"select_kernel": 104 if kind == "fp32" else 0, "finish_kernel": 16, "grad_bank_kernel": 0}  # bytes
    assert all(b.spills <= allowed[b.kernel] for b in built), built
    assert all(b.shared <= 163 * 1024 for b in built), built  # what a program may have on sm_80
    assert all(b.mma or b.wgmma or b.tcgen05 for b in built if b.kernel != "finish_kernel")
