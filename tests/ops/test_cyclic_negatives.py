# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""cyclic_negatives against the plain loop of its definition, on data full of ties; the published test vector."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_implementations import every_implementation

from reidfast import implementations
from reidfast.ops import cyclic_negatives
from reidfast.testing import FLOATS, peak_memory

impl = every_implementation("cyclic_negatives")


def loop(anchors, centres, own, r, candidates):
    """The definition, word for word, in float64."""
    anchors, centres = anchors.double().tolist(), centres.double().tolist()
    out = []
    for f, u in zip(anchors, own.tolist(), strict=True):
        chosen = -1
        ranked = sorted((math.dist(f, c), v) for v, c in enumerate(centres) if v != u)
        for _, v in ranked[:candidates]:
            around = sorted((math.dist(centres[v], c), w) for w, c in enumerate(centres) if w != v)
            first = [v] + [w for _, w in around[: r - 1]]
            if len(centres) >= r and u not in first:
                chosen = v
                break
        out.append(chosen)
    return out


def vectors(shape, a, b):
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).view(shape)


@pytest.mark.parametrize(
    "r,want", [(3, [3, 1, 4, 5, 5, 1, 4, 0, 0, 1, 4, 2]), (6, [-1] * 12), (7, [-1] * 12)], ids=["3", "6", "7"]
)
def test_published_vector(impl, r, want):
    embeddings = vectors((12, 5), 0.9, 0.2)
    centres = 0.9 * embeddings.view(6, 2, 5).mean(1) + 0.1 * vectors((6, 5), 1.3, 0.4)
    assert impl(embeddings, centres, torch.arange(12) // 2, r, 15).tolist() == want


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_equals_loop_on_ties(data):
    num, dim = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 40))
    top = data.draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31 - 1)))
    centres = torch.randint(0, top + 1, (num, dim), generator=generator).float()
    anchors = torch.randint(0, top + 1, (2 * num + 1, dim), generator=generator).float()
    own = torch.randint(0, num, (2 * num + 1,), generator=generator)
    anchors[0] = centres[own[0]]
    r, candidates = data.draw(st.integers(1, num + 2)), data.draw(st.integers(1, 20))
    want = loop(anchors, centres, own, r, candidates)
    for function in implementations("cyclic_negatives").values():
        assert function(anchors, centres, own, r, candidates).tolist() == want


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes(impl, dtype):
    centres = torch.randint(-4, 5, (21, 70)).to(dtype)
    anchors = (centres.double().repeat(2, 1) + torch.randint(-2, 3, (42, 70))).to(dtype)
    own = torch.arange(42) % 21
    assert impl(anchors, centres, own, 3, 15).tolist() == loop(anchors, centres, own, 3, 15)


@pytest.mark.parametrize("spread", [1.0, 1e-3], ids=["easy", "clustered"])
def test_real_size(impl, spread):
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(8, 768, generator=generator, dtype=torch.float64)[torch.arange(40) % 8]
    centres = centres + spread * torch.randn(40, 768, generator=generator, dtype=torch.float64)
    anchors = centres.repeat(2, 1) + 0.1 * spread * torch.randn(80, 768, generator=generator, dtype=torch.float64)
    own = torch.arange(80) % 40
    assert impl(anchors, centres, own, 3, 15).tolist() == loop(anchors, centres, own, 3, 15)


def test_edges(impl):
    f, none = torch.randn(4, 3), torch.zeros(0, dtype=torch.int64)
    assert impl(f[:0], f, none, 3, 15).shape == (0,)
    assert impl(f, f[:1], torch.zeros(4, dtype=torch.int64), 1, 15).tolist() == [-1] * 4
    assert impl(f, f[:2], torch.zeros(4, dtype=torch.int64), 1, 15).tolist() == [1] * 4
    assert impl(f, f, torch.arange(4), 5, 15).tolist() == [-1] * 4
    assert impl(f[:, :0], f[:, :0], torch.arange(4), 1, 1).tolist() == [1, 0, 0, 0]
    # all distances zero: v counts first in its own ranking though others have lower indices
    assert impl(torch.zeros(4, 2), torch.zeros(4, 2), torch.arange(4), 2, 15).tolist() == loop(
        torch.zeros(4, 2), torch.zeros(4, 2), torch.arange(4), 2, 15
    )


def test_nan_counts_as_infinite(impl):
    centres = torch.tensor([[0.0], [1.0], [math.nan], [3.0]])
    got = impl(torch.tensor([[0.1], [math.nan]]), centres, torch.tensor([0, 1]), 1, 15)
    assert got.tolist() == [1, 0]


def test_strides(impl):
    base = torch.randint(-3, 4, (40, 90)).double()
    own = torch.arange(20) % 10
    want = loop(base[::2, :30], base[:10, 30:60], own, 2, 5)
    assert impl(base[::2, :30], base[:10, 30:60], own, 2, 5).tolist() == want
    assert impl(base[::2, :30].t().contiguous().t(), base[:10, 30:60], own, 2, 5).tolist() == want


def test_memory_is_linear():
    peak = peak_memory(
        "from reidfast.ops import cyclic_negatives; c = torch.randn(3000, 4); u = torch.arange(3000)",
        "cyclic_negatives(c + 0.1, c, u, r=3)",
    )
    assert peak < 8 << 20  # one matrix of distances would be 36 MB


F, C, U = torch.ones(4, 3), torch.ones(5, 3), torch.zeros(4, dtype=torch.int64)
BAD = [
    ((F.long(), C, U), {}, TypeError, "expected anchors of dtype float32"),
    ((F, C[:, :2], U), {}, ValueError, r"anchors \(A, D\) and centres \(B, D\) with one D"),
    ((F, C, U[:3]), {}, ValueError, r"own of shape \(A,\) with A=4 to match anchors, got \(3,\)"),
    ((F, C, U.int()), {}, TypeError, "own of dtype int64"),
    ((F, C, U + 5), {}, ValueError, r"own in \[0, B\) with B=5, got 5"),
    ((F, C, U - 1), {}, ValueError, r"own in \[0, B\) with B=5, got -1"),
    ((F, C, U), {"r": 0}, ValueError, "r >= 1 and candidates >= 1, got r=0"),
    ((F, C, U), {"candidates": 0}, ValueError, "candidates=0"),
    ((F, C, U.to("meta")), {}, ValueError, "own on anchors's device"),
]


@pytest.mark.parametrize("args,options,error,words", BAD)
def test_rejects(args, options, error, words):
    with pytest.raises(error, match=words):
        cyclic_negatives(*args, **({"r": 2} | options))
