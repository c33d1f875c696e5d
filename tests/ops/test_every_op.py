# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What holds for every op alike, from the table in cases.py. What is an op's own is in test_<op>.py."""

import copy
import functools

import pytest
import torch
from cases import CASES, Case, forward_backward, leaves
from torch.utils._python_dispatch import TorchDispatchMode

import reidfast
from reidfast import evaluation, ops
from reidfast.testing import FLOATS, assert_no_worse, isa, nan_poison, threads

INDUCTOR = ("set_pool", "memory_loss", "memory_loss targets")
TWICE = {"grad_cam"}  # may be differentiated any number of times
CONSTANT = {"memory_update_", "cyclic_negatives"}  # without a gradient
FUNCTIONS = {name for name in ops.__all__ if not name[0].isupper()}
every = pytest.mark.parametrize("name", sorted(CASES))
differentiable = pytest.mark.parametrize("name", sorted(n for n in CASES if n.split()[0] not in CONSTANT))


sizes = pytest.mark.parametrize("sizes", ["odd", "large"])


def case(name, dtype=torch.float32, sizes="odd", device="cpu"):
    return CASES[name](Case(dtype, device, sizes))


def subsets(inputs):
    """Which inputs want a gradient: all, and each alone."""
    return [range(len(inputs)), *([i] for i in range(len(inputs)) if len(inputs) > 1)]


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert torch.equal(x.nan_to_num(), y.nan_to_num()) and torch.equal(x.isnan(), y.isnan())


def close(a, b, **tolerance):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x.double(), y.double(), equal_nan=True, **tolerance)


def copied(x):
    """With its strides, which ``clone`` keeps only where no memory lies between or behind the values."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)


class Calls(TorchDispatchMode):
    """The dispatcher ops of a namespace that run, with their arguments; not those that refuse."""

    def __init__(self, namespace):
        super().__init__()
        self.namespace, self.seen = namespace, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != self.namespace:
            return func(*args, **(kwargs or {}))
        before = tuple(copied(x) if isinstance(x, torch.Tensor) else x for x in args)
        result = func(*args, **(kwargs or {}))
        self.seen.append((func, before, dict(kwargs or {})))
        return result


def test_no_op_is_forgotten():
    assert {name.split()[0] for name in CASES} == FUNCTIONS
    assert set(reidfast.backends()) == FUNCTIONS | {"evaluation"}


@functools.lru_cache(len(FLOATS))
def by_reference(name, dtype, sizes):
    with reidfast.use_backend("reference"):
        return forward_backward(*case(name, dtype, sizes))


@every
@sizes
@pytest.mark.parametrize("instructions", ["default", "avx2", "avx512"])
def test_every_instruction_set_is_no_worse_than_plain_pytorch(name, instructions, sizes):
    try:
        with isa(instructions):
            results = [forward_backward(*case(name, dtype, sizes)) for dtype in FLOATS]
    except ValueError as error:
        pytest.skip(str(error))
    exact = by_reference(name, torch.float64, sizes)
    for dtype, got in zip(FLOATS, results, strict=True):
        eager = by_reference(name, dtype, sizes)
        # in float64 plain PyTorch is itself the truth and leaves no error to compare with
        assert_no_worse(got, exact, eager, ulps=512 if dtype == torch.float64 else 8)


@every
def test_opcheck(name):
    call, inputs = case(name)
    with Calls("reidfast") as calls:
        forward_backward(call, inputs)
    assert calls.seen
    for func, args, kwargs in calls.seen:
        torch.library.opcheck(func, args, kwargs)


@every
def test_fakes_for_any_mask_dtype_and_strides(name):
    call, inputs = case(name)
    with Calls("reidfast") as calls:
        for i in range(len(inputs)):
            forward_backward(call, inputs, [i])
        call, inputs = case(name, torch.bfloat16)
        if name.split()[0] != "memory_update_":  # which wants rows that are adjacent in memory
            inputs = [STRIDES["transposed"](x) for x in inputs]
        forward_backward(call, inputs)
    for func, args, kwargs in calls.seen:
        torch.library.opcheck(func, args, kwargs, test_utils=("test_schema", "test_faketensor"))


def test_schemas_of_evaluation():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 12, generator=generator)
    pids, camids = torch.arange(90) % 11, torch.arange(90) % 3
    labels = (pids[:30], pids[30:], camids[:30], camids[30:])
    with Calls("reidfast_eval") as calls:
        for protocol in ("market1501", "cuhk03"):
            evaluation.rank(x[:30], x[30:], *labels, protocol=protocol)
        evaluation.rank_distances(torch.cdist(x[:30], x[30:]), *labels)
        evaluation.search(x[:30], x[30:], 5)
        evaluation.roc(x[:30], x[30:], *labels)
        evaluation.rerank(x[:30], x[30:], k1=5, k2=2).dense()
        evaluation.jaccard_graph(x, k1=5, k2=2)
    assert len({func for func, _, _ in calls.seen}) >= 10
    for func, args, kwargs in calls.seen:
        torch.library.opcheck(func, args, kwargs, test_utils="test_schema")


@pytest.mark.parametrize(
    "name,backend", [(n, "aot_eager") for n in sorted(CASES)] + [(n, "inductor") for n in INDUCTOR]
)
def test_compiles_without_breaks(name, backend):
    torch._dynamo.reset()
    for sizes in ("odd", "even"):  # dynamic: the second call finds the code of the first
        call, inputs = case(name, sizes=sizes)
        compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=backend)
        close(forward_backward(compiled, inputs), forward_backward(call, inputs))
        assert type(compiled(*inputs)) is type(call(*inputs))


@differentiable
def test_gradcheck(name):
    for sizes in ("tiny", "odd"):
        call, inputs = case(name, torch.float64, sizes)
        inputs = [x.requires_grad_() for x in inputs]

        def outputs(*tensors):
            return tuple(torch.where(o.isfinite(), o, 0) for o in leaves(call(*tensors)) if o.requires_grad)  # noqa: B023

        assert torch.autograd.gradcheck(outputs, inputs, fast_mode=sizes != "tiny")


@differentiable
def test_gradient_only_where_asked(name):
    call, inputs = case(name)
    outputs = len(leaves(call(*inputs)))
    for wanted in subsets(inputs):
        results = forward_backward(call, inputs, wanted)
        assert len(results) == outputs + len(wanted)
        same(results[outputs:], [forward_backward(call, inputs)[outputs:][i] for i in wanted])


def second_gradients(name):
    call, inputs = case(name, torch.float64)
    inputs = [x.requires_grad_() for x in inputs]
    total = sum(torch.where(o.isfinite(), o, 0).pow(2).sum() for o in leaves(call(*inputs)) if o.requires_grad)
    grads = [g for g in torch.autograd.grad(total, inputs, create_graph=True, allow_unused=True) if g is not None]
    sum(g.pow(2).sum() for g in grads).backward()


@differentiable
def test_double_backward_works_or_raises(name):
    with reidfast.use_backend("reference"):
        second_gradients(name)
    if name.split()[0] in TWICE:
        second_gradients(name)
        return
    with pytest.raises(RuntimeError, match=f"{name.split()[0]}: double backward is not implemented"):
        second_gradients(name)


@every
@sizes
def test_every_output_is_written(name, sizes):
    call, inputs = case(name, sizes=sizes)
    want = forward_backward(call, inputs)
    with nan_poison():
        same(forward_backward(call, inputs), want)


@every
@sizes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(name, dtype, sizes):
    call, inputs = case(name, dtype, sizes)
    with threads(1):
        want = forward_backward(call, inputs)
    for count in (2, 3, 7):
        with threads(count):
            same(forward_backward(call, inputs), want)


@every
def test_an_empty_batch(name):
    call, inputs = case(name, sizes="empty")
    outputs = leaves(call(*inputs))
    with reidfast.use_backend("reference"):
        same(outputs, leaves(call(*inputs)))
    gradients = forward_backward(call, inputs)[len(outputs) :]
    for x, g in zip(inputs, gradients, strict=bool(gradients)):
        assert g.shape == x.shape and g.dtype == x.dtype and not g.any()
    on_meta, shapes = case(name, sizes="empty", device="meta")
    assert [o.shape for o in leaves(on_meta(*shapes))] == [o.shape for o in outputs]


@every
@pytest.mark.parametrize("odd_one", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_any_mixture_of_dtypes(name, odd_one):
    call, inputs = case(name)
    want = forward_backward(call, [x.double() for x in inputs])
    for i in range(len(inputs)):
        mixed = [x.to(odd_one) if j == i else x for j, x in enumerate(inputs)]
        out = leaves(call(*mixed))
        close([o for o in out], want[: len(out)], rtol=3e-2, atol=3e-2)
        gradients = forward_backward(call, mixed)[len(out) :]
        kept = [x.dtype for x in mixed]
        assert [g.dtype for g in gradients] == kept[: len(gradients)] or len(gradients) < len(mixed)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(name, dtype):
    call, inputs = case(name)
    want = forward_backward(call, inputs)
    with torch.autocast("cpu", dtype=dtype):
        got = forward_backward(call, inputs)
        mixed = forward_backward(call, [x.to(dtype) if i % 2 else x for i, x in enumerate(inputs)])
    close(got, want, rtol=0.1, atol=0.1)
    outputs = len(leaves(call(*inputs)))
    close(mixed[:outputs], want[:outputs], rtol=0.1, atol=0.1)
    assert [g.dtype for g in got[outputs:]] == [torch.float32] * (len(got) - outputs)
    low = [x.to(dtype) for x in inputs]
    with torch.autocast("cpu", dtype=dtype):
        got = leaves(call(*low))
    same(got, leaves(call(*low)))


@every
def test_meta(name):
    call, inputs = case(name)
    want = leaves(call(*inputs))
    on_meta, shapes = case(name, device="meta")
    got = leaves(on_meta(*shapes))
    assert [(o.shape, o.dtype, o.device.type) for o in got] == [(o.shape, o.dtype, "meta") for o in want]


def expanded(x):
    return x[..., :1].expand(x.shape)


STRIDES = {
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every second": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
    "offset by one": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "expanded": expanded,
    "rows apart": lambda x: torch.cat([x, x], -1)[..., 1 : x.shape[-1] + 1] if x.dim() > 1 else x,
    "one row": lambda x: x[:1].expand(x.shape),
}


@every
@pytest.mark.parametrize("strides", sorted(STRIDES))
def test_any_strides(name, strides):
    call, inputs = case(name)
    inputs = [STRIDES[strides](x) for x in inputs]
    if name.split()[0] == "memory_update_" and strides == "transposed":
        with pytest.raises(ValueError, match="expected a bank whose rows are adjacent in memory"):
            call(*inputs)
        return
    want = forward_backward(call, [x.contiguous() for x in inputs])
    close(forward_backward(call, inputs), want, rtol=1e-5, atol=1e-6)


@every
def test_on_a_device_without_kernels_the_reference_serves(name):
    """A device without kernels: the dispatcher refuses, once with a warning, and plain PyTorch answers."""
    call, inputs = case(name)
    want = leaves(call(*inputs))
    entry = reidfast.ops._backends.ENTRIES[name.split()[0]]
    kernel, entry.run = entry.run, refuse
    try:
        close(leaves(call(*inputs)), want, rtol=2e-4, atol=2e-5)
    finally:
        entry.run = kernel


def refuse(*inputs):
    raise NotImplementedError("Could not run 'reidfast::op' with arguments from the 'MPS' backend.")


@every
def test_vmap_works_or_says_so(name):
    call, inputs = case(name)
    batched = [torch.stack([x, x]) for x in inputs]
    try:
        got = torch.func.vmap(call)(*batched)
    except RuntimeError as error:
        assert ("vmap" in str(error) or "Batching rule" in str(error)) and "\n" not in str(error).strip()
    else:
        close([o[1] for o in leaves(got)], leaves(call(*inputs)), rtol=1e-5, atol=1e-6)


@every
def test_inference_mode_and_copies_of_results(name):
    call, inputs = case(name)
    want = leaves(call(*inputs))
    with torch.inference_mode():
        result = call(*inputs)
        same(leaves(result), want)
    copied = copy.deepcopy(result)
    assert type(copied) is type(result)
    same(leaves(copied), want)
