# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""memory_update_ against a plain loop: repeated rows, skipping, normalising, dtypes, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_implementations import get, names
from torch.nn.functional import normalize

import reidfast
from reidfast.ops import memory_update_
from reidfast.ops.reference.memory_update import memory_update_ as reference
from reidfast.testing import FLOATS, assert_no_worse, shape_id

SHAPES = [(0, 1, 1, 1), (2, 5, 7, 3), (6, 40, 300, 256), (0, 33, 10, 130), (3, 0, 4, 5)]  # M (0: 2-D), B, N, d
OP = reidfast.implementations("memory_update_")["native"]


@pytest.fixture(params=names("memory_update_"), ids=shape_id)
def impl(request):
    device, name = request.param
    function = get("memory_update_", device, name)

    def updated(bank, indices, values, momentum, normalize):
        bank = bank.to(device, copy=True)
        assert function(bank, indices.to(device), values.to(device), momentum, normalize) is None
        return bank

    return updated


def problem(shape, dtype=torch.float64, seed=0):
    parts, queries, rows, dim = shape
    generator = torch.Generator().manual_seed(seed)
    lead = (parts,) if parts else ()
    bank = torch.randn(*lead, rows, dim, generator=generator, dtype=torch.float64).to(dtype)
    values = torch.randn(*lead, queries, dim, generator=generator, dtype=torch.float64).to(dtype)
    return bank, torch.randint(-1, rows, (queries,), generator=generator), values


def by_reference(bank, indices, values, momentum, normalize):
    bank = bank.clone()
    reference(bank, indices, values, momentum, normalize)
    return bank


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("dtype", FLOATS, ids=shape_id)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_matches_reference(impl, shape, dtype, momentum, unit):
    bank, indices, values = problem(shape, dtype)
    exact = by_reference(bank.double(), indices, values.double(), momentum, unit)
    if dtype.itemsize == 2:  # every write rounds: the truth is the same sequence of roundings
        exact = by_reference(bank, indices, values, momentum, unit).double()
    got = impl(bank, indices, values, momentum, unit)
    assert_no_worse(got, exact, by_reference(bank, indices, values, momentum, unit))


def test_vector_paul(impl):  # PAUL: l = 0.1 is the weight of the new value
    feats = [torch.sin(0.3 * torch.arange(12, dtype=torch.float64) + b).view(4, 3) for b in (0.0, 1.0, 2.0)]
    bank = torch.stack([torch.cat([feats[m][[0, 2]], torch.zeros(1, 3).double()]) for m in (0, 1)])  # A, B, C
    bank[:, 2] = torch.stack([feats[1 + m][2] for m in (0, 1)])
    first = bank.clone()
    got = impl(bank, torch.tensor([1]), torch.stack([feats[1 + m][:1] for m in (0, 1)]), 0.9, False).cpu()
    torch.testing.assert_close(
        got, by_reference(bank, torch.tensor([1]), torch.stack([feats[1][:1], feats[2][:1]]), 0.9, False)
    )
    assert torch.equal(got[:, [0, 2]], first[:, [0, 2]])
    torch.testing.assert_close(got[0, 1], 0.9 * first[0, 1] + 0.1 * feats[1][0])


def test_repeated_rows_in_batch_order(impl):
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    values = torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, -1.0]], dtype=torch.float64)
    row = bank[0]
    for value in values[[0, 2]]:  # a renormalisation after each write, as the loops of ECN and SpCL do
        row = normalize(0.2 * row + 0.8 * value, dim=0)
    got = impl(bank, torch.tensor([0, -1, 0]), values, 0.2, True).cpu()
    torch.testing.assert_close(got[0], row)
    assert torch.equal(got[1], bank[1])
    plain = impl(bank, torch.tensor([0, 0, 0]), values, 0.5, False).cpu()[0]
    torch.testing.assert_close(plain, 0.125 * bank[0] + 0.125 * values[0] + 0.25 * values[1] + 0.5 * values[2])


def test_zero_rows_stay_zero(impl):
    got = impl(torch.zeros(2, 3), torch.tensor([0]), torch.zeros(1, 3), 0.5, True)
    assert torch.equal(got.cpu(), torch.zeros(2, 3))
    opposite = impl(torch.ones(1, 3), torch.tensor([0]), -torch.ones(1, 3), 0.5, True)
    assert torch.equal(opposite.cpu(), torch.zeros(1, 3))


def test_half_beside_float32(impl):
    bank, indices, values = problem((2, 9, 20, 24), torch.float32)
    for a, b in ((torch.bfloat16, torch.float32), (torch.float32, torch.float16)):
        got = impl(bank.to(a), indices, values.to(b), 0.3, True)
        assert got.dtype == a
        assert_no_worse(got, by_reference(bank.to(a), indices, values.to(b), 0.3, True), got, ulps=2)


def test_strided_bank():
    store = torch.randn(3, 10, 8, dtype=torch.float64)
    bank = store[:, ::2, 1:6]
    indices, values = torch.tensor([4, 0, 4]), torch.randn(3, 5, 3, dtype=torch.float64).transpose(1, 2)
    want, before = by_reference(bank, indices, values, 0.7, True), store.clone()
    memory_update_(bank, indices, values, momentum=0.7, normalize=True)
    torch.testing.assert_close(bank, want)
    assert torch.equal(store[:, 1::2], before[:, 1::2]) and torch.equal(store[..., 6:], before[..., 6:])


def test_values_are_constants_and_the_version_counts():
    bank, indices, values = problem((0, 3, 5, 4))
    values.requires_grad_()
    version = bank._version
    memory_update_(bank, indices, values, momentum=0.5)
    assert not bank.requires_grad and bank._version == version + 1
    with torch.inference_mode():
        fresh = torch.zeros(5, 4, dtype=torch.float64)
        memory_update_(fresh, indices, values.detach(), momentum=0.5)


def test_bank_that_records_is_refused():
    bank, indices, values = problem((0, 3, 5, 4))
    bank.requires_grad_()
    with pytest.raises(RuntimeError, match=r"torch.no_grad\(\)"):
        memory_update_(bank, indices, values, momentum=0.5)
    with torch.no_grad():
        memory_update_(bank, indices, values, momentum=0.5)
    with pytest.raises(RuntimeError, match=r"torch.no_grad\(\)"):
        OP(bank, indices, values, 0.5, False)


def test_compiles_where_the_bank_is_an_input():
    function = lambda w, i, v: memory_update_(w, i, v, momentum=0.5, normalize=True)  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 5, 30, 6), (2, 9, 70, 11)):
        bank, indices, values = problem(shape, torch.float32)
        want = by_reference(bank, indices, values, 0.5, True)
        compiled(bank, indices, values)
        torch.testing.assert_close(bank, want)


@settings(deadline=None, max_examples=60)
@given(
    indices=st.lists(st.integers(-1, 4), max_size=20),
    dim=st.integers(1, 40),
    momentum=st.floats(0, 1),
    unit=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_property(indices, dim, momentum, unit, seed):
    bank, _, values = problem((0, len(indices), 5, dim), torch.float64, seed)
    indices = torch.tensor(indices, dtype=torch.int64)
    want = by_reference(bank, indices, values, momentum, unit)
    memory_update_(bank, indices, values, momentum=momentum, normalize=unit)
    torch.testing.assert_close(bank, want, rtol=1e-9, atol=1e-9)


W, ROWS, V = torch.zeros(2, 9, 3), torch.tensor([0, 1, 2, 3]), torch.zeros(2, 4, 3)
BAD = [
    ((W, ROWS, V[0]), {}, ValueError, r"got \(2, 9, 3\) and \(4, 3\)"),
    ((W, ROWS[:3], V), {}, ValueError, r"shape \(B,\) with B=4, got \(3,\)"),
    ((W, ROWS.int(), V), {}, TypeError, "indices of dtype int64"),
    ((W, ROWS + 6, V), {}, ValueError, "indices from -1 to N-1=8"),
    ((W, ROWS - 2, V), {}, ValueError, "indices from -1 to N-1=8"),
    ((W.long(), ROWS, V), {}, TypeError, "bank of dtype float32"),
    ((W, ROWS, V), {"momentum": 1.5}, ValueError, "weight of the old value, from 0 to 1, got 1.5"),
    ((W, ROWS, V), {"momentum": None}, TypeError, "momentum to be a number"),
    ((W.mT.contiguous().mT, ROWS, V), {}, ValueError, "keep the bank contiguous"),
    ((W.to("meta"), ROWS, V), {}, ValueError, "device"),
]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("args,options,error,words", BAD)
def test_rejects(args, options, error, words, backend):
    with reidfast.use_backend(backend), pytest.raises(error, match=words):
        memory_update_(*args, **{"momentum": 0.5} | options)
