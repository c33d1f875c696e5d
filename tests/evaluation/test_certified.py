# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Streaming ranks and the certified precision, with plain torch in place of the kernels (plain_kernels)."""

from __future__ import annotations

import numpy as np
import plain_kernels as plain
import pytest
import torch
from ranking_cases import same

from reidfast.evaluation import METRICS, rank
from reidfast.evaluation._backends import certified as bound
from reidfast.evaluation._backends import triton
from reidfast.evaluation._core import plan
from reidfast.testing import make_embeddings

LOW = ("tf32_low", "bf16_low")


@pytest.fixture(autouse=True)
def on_plain_kernels(monkeypatch):
    """As on a CUDA device, the kernels restated in torch."""
    monkeypatch.setattr(plan, "triton_kernels", lambda device: plain)


def people(queries, gallery, dim, seed=0, offset=0.6, spread=0.7):
    """Clustered features around a common mean, as a trained network's are; ids and cameras."""
    x, ids = make_embeddings(queries + gallery, dim, per_identity=12, spread=spread, seed=seed)
    x = x + offset * torch.ones(dim) / dim**0.5
    cameras = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, len(x)))
    at = queries
    return (x[:at], x[at:]), (ids[:at], ids[at:], cameras[:at], cameras[at:])


def near_ties(features, labels, seed=1):
    """Gallery rows of other identities moved onto, and within a few units of the last place of, true matches."""
    query, gallery = features[0], features[1].clone()
    rng = np.random.default_rng(seed)
    ids = labels[1].numpy()
    for i in rng.permutation(len(gallery))[: len(gallery) // 3]:
        j = int(rng.integers(len(gallery)))
        if ids[i] != ids[j]:
            step = float(rng.choice([0.0, 1e-7, -1e-7, 4e-7, 3e-6, 1e-4]))
            gallery[i] = gallery[j] * (1 + step) if rng.random() < 0.5 else gallery[j] + step * gallery[(j + 1) % 7]
    return query, gallery


@pytest.mark.parametrize("first_pass", LOW)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [48, 700])
def test_ranks_are_those_of_float32(monkeypatch, metric, first_pass, dim):
    monkeypatch.setattr(bound, "FIRST_PASS", first_pass)
    features, labels = people(70, 500, dim)
    features = near_ties(features, labels)
    exact = rank(*features, *labels, metric=metric)
    certified = rank(*features, *labels, metric=metric, precision="certified")
    assert exact.ambiguous == 0 and 0 < certified.ambiguous < 0.6
    same(certified._replace(ambiguous=0.0), exact)
    assert exact.bounds[0] < exact.bounds[1]  # there are ties to get right


def test_the_first_pass_alone_would_be_wrong(monkeypatch):
    """What the re-check is for: with bounds of zero the adversarial pass changes ranks."""
    features, labels = people(60, 500, 256)
    features = near_ties(features, labels)
    honest = bound.error_terms

    def no_bound(*args):
        terms = honest(*args)
        terms.q[1:] = 0
        terms.g[1:] = 0
        return terms

    exact = rank(*features, *labels)
    monkeypatch.setattr(bound, "error_terms", no_bound)
    wrong = rank(*features, *labels, precision="certified")
    assert not np.array_equal(wrong.ap, exact.ap)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("metric", METRICS)
def test_any_scale_and_any_mean(metric, scale):
    features, labels = people(40, 300, 64, offset=8.0)
    features = tuple(scale * x for x in near_ties(features, labels))
    exact = rank(*features, *labels, metric=metric)
    same(rank(*features, *labels, metric=metric, precision="certified")._replace(ambiguous=0.0), exact)


def test_rows_of_very_different_length():
    features, labels = people(40, 300, 64)
    lengths = torch.logspace(-3, 3, 340)[torch.randperm(340)]
    features = features[0] * lengths[:40, None], features[1] * lengths[40:, None]
    for metric in METRICS:
        exact = rank(*features, *labels, metric=metric)
        same(rank(*features, *labels, metric=metric, precision="certified")._replace(ambiguous=0.0), exact)


@pytest.mark.parametrize("first_pass", LOW)
@pytest.mark.parametrize("metric", METRICS)
def test_the_bound_holds_for_every_pair(metric, first_pass):
    """|first pass - float32 routine| <= e, adversarial accumulation included."""
    number = METRICS.index(metric)
    (x, y), _ = people(90, 400, 600, spread=0.3)
    q, g = (plain.pack(t, None, number == 0, "float32") for t in (x, y))
    centre = g.data[0, : g.n, :600].mean(0)
    a, b = (plain.pack(t, None, number == 0, first_pass, centre) for t in (x, y))
    terms = bound.error_terms(a.stats, b.stats, centre, 600, plain.CHUNK, number)
    exact = plain.dense(q, g, number).double()
    if number == 1:
        exact = plain.dense(q, g, 2).double()
    granted = plain.ADVERSE * (plain.CHUNK * 2.0**-22 + 3 * 2.0**-23)
    size = a.stats[2].sqrt()[:90, None] * b.stats[2].sqrt()[:400]
    tq, tg = terms.q[:, :90, None], terms.g[:, None, :400]
    e = tq[1] + tg[1] + tq[2] * tg[2] + tq[3] * tg[3] + tq[4] * tg[4]
    for sign in (-1, 1):
        c = plain.products(a, b)[:90, :400] + (sign * granted * size).float()
        d = (tq[0] + tg[0]) + terms.slope * c
        assert bool(((d.double() - exact).abs() <= e).all())
        assert float(((d.double() - exact).abs() / e).max()) > 0.02  # and is not idle


@pytest.mark.parametrize("precision", ["float32", "tf32x3", "bf16", "certified"])
def test_parts_of_the_gallery_and_junk(monkeypatch, precision):
    """Shards, pieces, blocks of queries and junk rows change nothing."""
    (x, y), labels = people(150, 600, 40)
    labels[1][::13] = -1
    whole = rank(x, y, *labels, precision=precision)
    monkeypatch.setattr(triton, "_QUERIES", 64)
    monkeypatch.setattr(triton, "_GALLERY_BYTES", 4 * 40 * 128)
    monkeypatch.setattr(triton, "_TILES", 2)
    parts = rank([x[:70], x[70:]], [y[:200], y[200:201], y[201:]], *labels, precision=precision)
    same(parts._replace(ambiguous=0.0), whole._replace(ambiguous=0.0))


@pytest.mark.parametrize("metric", METRICS)
def test_precisions_agree_with_the_cpu(monkeypatch, metric):
    features, labels = people(80, 700, 128)
    found = {p: rank(*features, *labels, metric=metric, precision=p) for p in ("float32", "tf32x3", "bf16")}
    monkeypatch.setattr(plan, "triton_kernels", lambda device: None)
    want = rank(*features, *labels, metric=metric)
    for precision, limit in (("float32", 1e-4), ("tf32x3", 1e-4), ("bf16", 2e-2)):
        assert abs(found[precision].mean_ap - want.mean_ap) < limit, precision
        assert np.array_equal(found[precision].valid, want.valid)


def test_half_features_and_strides():
    (x, y), labels = people(40, 200, 32)
    wide = torch.zeros(200, 64, dtype=torch.float16)
    wide[:, ::2] = y.half()
    same(rank(x.half(), wide[:, ::2], *labels), rank(x.half().float(), y.half().float(), *labels))


@pytest.mark.parametrize("first_pass,limit", [("tf32_low", 0.008), ("bf16_low", 0.06)])
@pytest.mark.data
def test_ambiguous_share_of_real_features(monkeypatch, reidfast_data, first_pass, limit):
    """OSNet on people it has not seen: few pairs are left to the float32 routine."""
    monkeypatch.setattr(bound, "FIRST_PASS", first_pass)
    file = np.load(reidfast_data / "features" / "osnet_x0_25_msmt17__market751_holdout.npz")
    features = [torch.from_numpy(file[name]) for name in ("query", "gallery")]
    labels = [file[name] for name in ("query_pid", "gallery_pid", "query_cam", "gallery_cam")]
    exact, certified = (rank(*features, *labels, precision=p) for p in ("float32", "certified"))
    same(certified._replace(ambiguous=0.0), exact)
    print(certified.ambiguous)
    assert 0 < certified.ambiguous < limit


def test_errors(monkeypatch):
    features, labels = people(20, 100, 16)
    with pytest.raises(NotImplementedError, match="protocol 'cuhk03' needs whole rows"):
        rank(*features, *labels, protocol="cuhk03", precision="bf16")
    with pytest.raises(NotImplementedError, match="'certified' is not served for float64 features"):
        rank(*(x.double() for x in features), *labels, precision="certified")
    monkeypatch.undo()
    for precision in ("tf32x3", "certified", "bf16"):
        with pytest.raises(NotImplementedError, match=f"{precision}.*on cpu; use precision='float32'"):
            rank(*features, *labels, precision=precision)
