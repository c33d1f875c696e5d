# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The two libraries that multiply on the CPU: each in a process of its own, for the choice is made once."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from reidfast.ops import _library

pytestmark = pytest.mark.skipif(not _library.loaded, reason="needs the compiled extension")

SCRIPT = """
import torch
from reidfast.evaluation import search
from reidfast.ops import _library, memory_loss
from reidfast.testing import threads

generator = torch.Generator().manual_seed(0)
print(_library.product_library())

def close(got, wanted, scale):
    assert ((got.double() - wanted).abs() <= 1e-6 * scale).all(), (got.double() - wanted).abs().max()

for queries, gallery, dim in ((40, 700, 37), (200, 1300, 1100), (3, 600, 512)):
    q = torch.randint(-4, 5, (queries, dim), generator=generator).float()
    g = torch.randint(-4, 5, (gallery, dim), generator=generator).float()
    found = search(q, g, gallery, metric="dot")  # of small integers: exact, whatever is summed first
    wanted = -(q.double() @ g.double().T)
    assert torch.equal(found[0].double(), wanted.sort(dim=1, stable=True).values)
    assert torch.equal(found[1], wanted.sort(dim=1, stable=True).indices)

    q, g = torch.randn(queries, dim, generator=generator), torch.randn(gallery, dim, generator=generator)
    d, at = search(q, g, gallery, metric="dot")
    whole = torch.empty(queries, gallery).scatter_(1, at, d)
    close(whole, -(q.double() @ g.double().T), dim)
    order = torch.randperm(gallery, generator=generator)
    for count in (1, 2):  # the same bits at every place of the gallery, on any number of threads
        with threads(count):
            d, at = search(q, g[order], gallery, metric="dot")
        assert torch.equal(whole[:, order], torch.empty(queries, gallery).scatter_(1, at, d))

for queries, rows, dim in ((40, 900, 96), (5, 700, 33)):
    x, bank = torch.randn(queries, dim, generator=generator), torch.randn(rows, dim, generator=generator)
    x, bank = (torch.nn.functional.normalize(t) for t in (x, bank))
    wanted_x = x.double().requires_grad_()
    logits = -5.0 * torch.cdist(wanted_x, bank.double()).square()
    wanted = (logits.logsumexp(1) - logits.topk(7).values.logsumexp(1)).sum()
    wanted.backward()
    x.requires_grad_()
    loss = memory_loss(x, bank, k=7, scale=5.0).sum()
    loss.backward()
    close(loss, wanted, queries * 10)
    close(x.grad, wanted_x.grad, 50)
"""


def run(library: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"REIDFAST_PRODUCT": library}
    return subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("library", ["auto", "blas", "onednn"])
def test_products_are_exact_and_the_same_everywhere(library):
    done = run(library)
    x86 = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
    if library == "onednn" and not x86:
        assert "expected auto or blas" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    if library != "auto":
        assert done.stdout.split() == [library]


def test_an_unknown_library():
    done = run("mkl")
    assert done.returncode != 0
    assert "REIDFAST_PRODUCT: expected auto, blas or onednn, got mkl" in done.stderr
