# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""QueryConvLSTM against its equations written out."""

from __future__ import annotations

import pytest
import torch

from reidfast.nn import QueryConvLSTM


def written_out(cell, x, q):
    """The equations of the class's docstring, gate by gate."""
    d = cell.hidden
    conv = torch.nn.functional.conv2d
    pad = cell.input.padding

    def w(module, k):
        return module.weight[k * d : (k + 1) * d]

    h = c = x.new_zeros(x.shape[1], d, *x.shape[3:])
    out = []
    for t in range(len(x)):
        a = []
        for k in range(4):
            term = conv(x[t], w(cell.input, k), cell.input.bias[k * d : (k + 1) * d], padding=pad)
            term = term + conv(h, w(cell.recurrent, k), padding=pad)
            if cell.query_in_candidate:
                term = term + conv(q, w(cell.query, k), padding=pad)
            elif k != 2:
                term = term + conv(q, w(cell.query, k - (k > 2)), padding=pad)
            a.append(term)
        peep = [0.0] * 3 if cell.peephole is None else cell.peephole
        i, f = torch.sigmoid(a[0] + peep[0] * c), torch.sigmoid(a[1] + peep[1] * c)
        c = f * c + i * torch.tanh(a[2])
        h = torch.sigmoid(a[3] + peep[2] * c) * torch.tanh(c)
        out.append(h)
    return torch.stack(out)


def make(seed=0, **options):
    torch.manual_seed(seed)
    cell = QueryConvLSTM(3, 4, **options).double()
    if cell.peephole is not None:
        torch.nn.init.normal_(cell.peephole)
    return cell, torch.randn(3, 2, 3, 5, 4, dtype=torch.float64), torch.randn(2, 3, 5, 4, dtype=torch.float64)


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("candidate", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_matches_equations(peephole, candidate, kernel):
    cell, x, q = make(kernel=kernel, peephole=peephole, query_in_candidate=candidate)
    torch.testing.assert_close(cell(x, q), written_out(cell, x, q), rtol=0, atol=1e-12)


def test_one_query_for_many_regions_and_one_region_for_many_queries():
    cell, x, q = make()
    many = q[:1].expand(2, -1, -1, -1)
    torch.testing.assert_close(cell(x, q[:1]), cell(x, many))
    gates, fixed = cell.input_gates(x[0, :1]), cell.query_gates(q)
    shared = cell.step(gates, fixed)
    for i in range(2):
        alone = cell.step(gates, fixed[i : i + 1])
        torch.testing.assert_close(shared[0][i], alone[0][0])
        torch.testing.assert_close(shared[1][i], alone[1][0])


def test_forget_bias_and_zero_start():
    cell = QueryConvLSTM(2, 3, forget_bias=1.5)
    assert cell.input.bias[3:6].tolist() == [1.5] * 3 and cell.input.bias[:3].abs().sum() == 0
    assert torch.equal(QueryConvLSTM(2, 3, peephole=True).peephole, torch.zeros(3, 3, 1, 1))


@pytest.mark.parametrize("peephole", [False, True])
def test_gradients(peephole):
    torch.manual_seed(0)
    cell = QueryConvLSTM(2, 2, peephole=peephole).double()
    x = torch.randn(2, 1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    q = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    parameters = tuple(cell.parameters())
    assert torch.autograd.gradcheck(lambda x, q, *_: cell(x, q), (x, q, *parameters))


def test_bad_inputs():
    for options in ({"channels": 0, "hidden": 1}, {"channels": 1, "hidden": 1, "kernel": 2}):
        with pytest.raises(ValueError, match="odd kernel"):
            QueryConvLSTM(**options)
    with pytest.raises(ValueError, match=r"x \(T, B, C, K, K\)"):
        QueryConvLSTM(1, 1)(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
