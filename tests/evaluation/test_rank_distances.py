# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""rank_distances against a stable sort of every row, hand-computed cases, published vectors and the peers' rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking_cases import Labelled, close, labels, same, tied_distances

import reidfast
from reidfast.evaluation import rank_distances, sampled_cmc
from reidfast.testing import isa, reference

# Two queries, eight gallery rows, cameras; the second row of distances is the first reversed.
TV_DISTANCES = np.array([np.arange(1, 9) / 10, np.arange(8, 0, -1) / 10])
TV = Labelled([1, 2], [1, 2, 1, 0, 1, 2, 1, 2], [0, 1], [0, 1, 1, 2, 0, 0, 2, 2])

BACKENDS = ("native", "reference")


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "native" and not reidfast.ops._library.loaded:
        pytest.skip("the compiled part is not there")
    with reidfast.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize(
    "kind,ap,mean",
    [("step", [0.45, 0.83333333], 0.64166667), ("trapezoid", [0.2875, 0.79166667], 0.53958333)],
)
def test_published_vector(backend, kind, ap, mean):
    found = rank_distances(TV_DISTANCES, *TV, average_precision=kind, max_rank=4)
    np.testing.assert_allclose(found.ap, ap, atol=5e-9)
    assert found.mean_ap == pytest.approx(mean, abs=5e-9)
    np.testing.assert_array_equal(found.cmc, [0.5, 1, 1, 1])
    np.testing.assert_array_equal(found.first_match, [2, 1])
    np.testing.assert_allclose(found.inp, [2 / 5, 2 / 3])
    assert found.bounds == (found.mean_ap, found.mean_ap)
    assert found.skipped.size == 0 and found.valid.all()


def test_published_vector_grouped(backend):
    found = rank_distances(TV_DISTANCES, *TV, average_precision="sklearn")
    assert found.mean_ap == pytest.approx(0.53958333, abs=5e-9)


def test_mars_by_hand(backend):
    # Gallery = all tracklets, the query's own (row 0) among them: junk by the camera rule, as is row 1.
    # Left, in order: row 2 (other id), 3 (match), 4 (distractor), 5 (match). Row 6 is junk for everybody.
    distances = [[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.05]]
    given_labels = ([7], [7, 7, 9, 7, 0, 7, -1], [1], [1, 1, 2, 2, 3, 3, 2])
    official = rank_distances(distances, *given_labels, protocol="mars")
    assert official.first_match[0] == 2
    assert official.ap[0] == pytest.approx((0.5 * (0 + 1 / 2) + 0.5 * (1 / 3 + 2 / 4)) / 2)
    steps = rank_distances(distances, *given_labels, protocol="mars_torchreid")
    assert steps.ap[0] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert official.inp[0] == steps.inp[0] == 2 / 4


@settings(max_examples=1500, deadline=None)
@given(tied_distances(), st.sampled_from(["market1501", "mars"]), st.sampled_from(["step", "trapezoid", "sklearn"]))
def test_equals_stable_sort(case, protocol, kind):
    distances, given_labels = case
    try:
        found = rank_distances(distances, *given_labels, protocol=protocol, average_precision=kind, max_rank=7)
    except ValueError as error:
        assert "none of the" in str(error)
        return
    expected = reference.rank_distances(
        distances, *given_labels, protocol=protocol, average_precision_kind=kind, max_rank=7
    )
    close(found, expected)
    worst, best = found.bounds
    assert worst - 1e-12 <= found.mean_ap <= best + 1e-12


@settings(max_examples=300, deadline=None)
@given(tied_distances())
def test_single_shot_equals_enumeration(case):
    distances, given_labels = case
    try:
        found = rank_distances(distances, *given_labels, protocol="cuhk03", max_rank=4)
    except ValueError as error:
        assert "none of the" in str(error)
        return
    close(found, reference.rank_distances(distances, *given_labels, protocol="cuhk03", max_rank=4))


@settings(max_examples=60, deadline=None)
@given(tied_distances(), st.sampled_from(["market1501", "cuhk03"]))
def test_plain_torch_equals_native(case, protocol):
    distances, given_labels = case
    try:
        found = rank_distances(distances, *given_labels, protocol=protocol)
    except ValueError:
        return
    with reidfast.use_backend("reference"):
        plain = rank_distances(distances, *given_labels, protocol=protocol)
    if protocol == "cuhk03":
        close(found, plain)
    else:
        same(found, plain)


def test_single_shot_by_hand(backend):
    # Matches at 0.3 (row 2) and 0.6 (row 5). Identity 2 has images at 0.1, 0.5; identity 3 one at 0.2.
    distances = [[0.1, 0.2, 0.3, 0.5, 0.6, 0.05]]
    ids = [2, 3, 1, 2, 1, -1]
    found = rank_distances(distances, [1], ids, protocol="cuhk03", max_rank=3)
    # From row 2: identity 3 always before, identity 2 with chance 1/2. From row 4: both always before.
    np.testing.assert_allclose(found.cmc, [0, 0.25, 1.0])
    assert found.ap[0] == pytest.approx((1 / 3 + 2 / 5) / 2)  # unsampled


def test_single_shot_is_what_draws_tend_to():
    rng = np.random.default_rng(0)
    given_labels = labels(rng, 20, 60, 6)
    distances = rng.random((20, 60))
    expected = rank_distances(distances, *given_labels, protocol="cuhk03", max_rank=6).cmc
    drawn = sampled_cmc(distances, *given_labels, max_rank=6, repeats=2000, seed=3)
    np.testing.assert_allclose(drawn, expected, atol=0.01)
    few = sampled_cmc(distances, *given_labels, max_rank=6, repeats=10, seed=3)
    assert np.abs(few - expected).max() < 0.15
    np.testing.assert_array_equal(few, sampled_cmc(distances, *given_labels, max_rank=6, repeats=10, seed=3))


def test_sampled_curve_follows_numpy_legacy_draws():
    # One query; per repeat the peers draw for each identity, in order of first appearance, np.random.choice of places.
    distances, ids = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]]), np.array([2, 1, 2, 3, 1])
    np.random.seed(11)
    curve = np.zeros(3)
    for _ in range(10):
        kept = sorted([np.random.choice([0, 2]), np.random.choice([1, 4]), 3])
        curve += np.cumsum([ids[i] == 1 for i in kept])
    np.testing.assert_allclose(sampled_cmc(distances, [1], ids, max_rank=3, seed=11), curve / 10)


def test_ties_go_by_gallery_index(backend):
    # All equal: the match at column 2 comes third, after the two before it, before the two behind.
    found = rank_distances(np.zeros((1, 5)), [1], [2, 3, 1, 2, 3])
    assert found.first_match[0] == 3
    assert found.bounds == (1 / 5, 1.0)


def test_best_and_worst_order_of_matches_among_ties(backend):
    found = rank_distances(np.zeros((1, 4)), [1], [1, 2, 1, 3])
    assert found.ap[0] == pytest.approx((1 + 2 / 3) / 2)
    assert found.bounds == pytest.approx(((1 / 3 + 2 / 4) / 2, 1.0))


@pytest.mark.parametrize("matches", [1, 3, 64, 65, 97, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_number_of_matches(matches, dtype):
    rng = np.random.default_rng(matches)
    for values in (5, 10**6):
        gallery = np.r_[np.ones(matches, int), rng.integers(2, 9, 700)]
        rng.shuffle(gallery)
        distances = rng.integers(0, values, (3, len(gallery))).astype(dtype)
        ids = [1, 1, 2]
        close(rank_distances(distances, ids, gallery), reference.rank_distances(distances, np.array(ids), gallery))


@pytest.mark.parametrize("g", [1, 15, 16, 17, 4095, 4096, 4097, 9000])
def test_row_lengths(g):
    rng = np.random.default_rng(g)
    given_labels = labels(rng, 6, g, 2, cameras=0, junk=g > 1)
    given_labels.gallery_pids[0] = 0
    given_labels.query_pids[0] = 0
    distances = rng.integers(0, 50, (6, g)).astype(np.float32)
    close(rank_distances(distances, *given_labels), reference.rank_distances(distances, *given_labels))


@pytest.mark.parametrize("protocol", ["market1501", "cuhk03"])
def test_strides_and_kinds(tmp_path, protocol):
    rng = np.random.default_rng(1)
    given_labels = labels(rng, 12, 40, 4)
    distances = rng.random((12, 40)).astype(np.float32)
    expected = rank_distances(distances, *given_labels, protocol=protocol)
    np.save(tmp_path / "d.npy", distances)
    wide = np.zeros((24, 80), np.float32)
    wide[::2, ::2] = distances
    readonly = distances.copy()
    readonly.setflags(write=False)
    kinds = {
        "fortran": np.asfortranarray(distances),
        "strided": wide[::2, ::2],
        "reversed": distances[::-1].copy()[::-1],
        "big endian": distances.astype(">f4"),
        "readonly": readonly,
        "memmap": np.load(tmp_path / "d.npy", mmap_mode="r"),
        "path": tmp_path / "d.npy",
        "torch": torch.from_numpy(distances),
        "torch transposed": torch.from_numpy(distances.T.copy()).T,
        "needs grad": torch.from_numpy(distances).requires_grad_(),
        "list": distances.tolist(),
    }
    before = distances.copy()
    for name, kind in kinds.items():
        found = rank_distances(kind, *given_labels, protocol=protocol)
        assert isinstance(found.cmc, np.ndarray) and isinstance(found.mean_ap, float), name
        same(found, expected)
    np.testing.assert_array_equal(distances, before)  # never written to


def test_kinds_of_ids():
    rng = np.random.default_rng(2)
    given_labels = labels(rng, 12, 40, 4)
    distances = rng.random((12, 40))
    expected = rank_distances(distances, *given_labels)
    for convert in (list, torch.from_numpy, lambda x: x.astype(np.int16), lambda x: torch.from_numpy(x).int()):
        same(rank_distances(distances, *map(convert, given_labels)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_are_compared_as_they_are(backend, dtype):
    rng = np.random.default_rng(3)
    given_labels = labels(rng, 10, 80, 4)
    distances = torch.from_numpy(rng.random((10, 80))).to(dtype)
    close(rank_distances(distances, *given_labels), reference.rank_distances(distances.double().numpy(), *given_labels))


def test_integer_distances():
    rng = np.random.default_rng(4)
    given_labels = labels(rng, 5, 30, 3)
    distances = rng.integers(0, 9, (5, 30))
    same(rank_distances(distances, *given_labels), rank_distances(distances.astype(float), *given_labels))


def test_infinite_distances_rank_last(backend):
    found = rank_distances([[np.inf, 0.5, -np.inf, np.inf]], [1], [1, 2, 3, 4])
    assert found.first_match[0] == 3 and found.bounds == (1 / 4, 1 / 3)


def test_negative_zero_ties_with_zero(backend):
    assert rank_distances([[-0.0, 0.0]], [1], [2, 1]).bounds == (0.5, 1.0)


def test_skipped_queries():
    found = rank_distances(np.random.rand(4, 3), [1, 5, 2, 1], [1, 2, 2], [0, 0, 0, 1], [1, 1, 0])
    np.testing.assert_array_equal(found.valid, [True, False, True, False])
    np.testing.assert_array_equal(found.skipped, [1, 3])
    assert np.isnan(found.ap[[1, 3]]).all() and np.isnan(found.inp[[1, 3]]).all()
    np.testing.assert_array_equal(found.first_match[[1, 3]], [-1, -1])
    assert found.mean_ap == np.mean(found.ap[[0, 2]])


def test_curve_is_carried_on_past_the_gallery():
    found = rank_distances([[0.3, 0.1]], [1], [1, 2], max_rank=6)
    np.testing.assert_array_equal(found.cmc, [0, 1, 1, 1, 1, 1])


def test_threads_change_nothing():
    rng = np.random.default_rng(5)
    given_labels = labels(rng, 200, 900, 20)
    distances = rng.integers(0, 300, (200, 900)).astype(np.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = rank_distances(distances, *given_labels)
        torch.set_num_threads(2)
        same(rank_distances(distances, *given_labels), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "change,error,words",
    [
        ({"distances": np.zeros(3)}, ValueError, r"shape \(Q, G\), got \(3,\)"),
        ({"distances": np.zeros((2, 0))}, ValueError, "at least one row"),
        ({"distances": np.zeros((2, 3), bool)}, TypeError, "floating-point or integer"),
        ({"distances": np.zeros((2, 3), complex)}, TypeError, "floating-point or integer"),
        ({"distances": np.array([["a"] * 3] * 2)}, TypeError, "numbers"),
        ({"distances": "nowhere.npy"}, ValueError, "nowhere.npy"),
        ({"distances": "matrix.txt"}, ValueError, r"\.npy or \.safetensors"),
        ({"distances": None}, TypeError, "torch tensor"),
        ({"distances": np.array([[0, 1, 2], [0, np.nan, 1]])}, ValueError, "NaN, first in query row 1"),
        ({"query_pids": [1, 2, 3]}, ValueError, r"query_pids of shape \(2,\).*\(3,\)"),
        ({"gallery_pids": [1, 2]}, ValueError, r"gallery_pids of shape \(3,\).*\(2,\)"),
        ({"query_pids": [[1, 2]]}, ValueError, r"shape \(2,\), got \(1, 2\)"),
        ({"query_pids": [1.0, 2.0]}, TypeError, "integer dtype, got float64"),
        ({"query_pids": ["a", "b"]}, TypeError, "integer dtype"),
        ({"query_pids": [1, -1]}, ValueError, "pid -1 .junk. at query row 1"),
        ({"gallery_camids": None}, ValueError, "query_camids without gallery_camids"),
        ({"query_camids": None}, ValueError, "gallery_camids without query_camids"),
        ({"query_camids": [1]}, ValueError, r"query_camids of shape \(2,\)"),
        ({"protocol": "market"}, ValueError, "'market1501', 'cuhk03', 'mars', 'mars_torchreid', got 'market'"),
        ({"average_precision": "area"}, ValueError, "'step', 'trapezoid', 'sklearn', got 'area'"),
        ({"max_rank": 0}, ValueError, "max_rank >= 1, got 0"),
        ({"max_rank": 2.5}, TypeError, "max_rank to be an integer"),
        ({"gallery_pids": [7, 8, 9]}, ValueError, "no identity in common.*overlap"),
        ({"gallery_camids": [0, 0, 0]}, ValueError, "leave out query_camids and gallery_camids"),
        ({"distances": np.zeros((0, 3)), "query_pids": [], "query_camids": []}, ValueError, "at least one query"),
        ({"group": "gloo"}, RuntimeError, "initialised"),
    ],
)
def test_rejects(change, error, words):
    arguments = {
        "distances": np.random.rand(2, 3), "query_pids": [1, 2], "gallery_pids": [1, 2, 3],
        "query_camids": [0, 0], "gallery_camids": [1, 1, 1],
    }  # fmt: skip
    with pytest.raises(error, match=r"^rank_distances: .*" + words):
        rank_distances(**arguments | change)


@pytest.mark.parametrize("name", ["default", "avx2", "avx512"])
@pytest.mark.parametrize("matches", [1, 7, 31, 32, 33, 97])  # around the places that fit in registers, and the search
@pytest.mark.parametrize("others", [1, 15, 223, 225, 1000])  # around whole blocks of 256
def test_distinct_distances_at_every_size(name, matches, others):
    rng = np.random.default_rng(1000 * matches + others)
    n = matches + others
    distances = np.stack([rng.permutation(n) - n / 2 for _ in range(3)]).astype(np.float32)
    distances[:, rng.integers(n)] = np.inf
    distances[:, rng.integers(n)] = -np.inf
    ids = rng.permutation(np.r_[np.ones(matches, np.int64), np.full(others, 2)])
    given_labels = Labelled([1, 1, 1], ids)
    try:
        with isa(name):
            found = rank_distances(distances, *given_labels)
    except ValueError as error:
        pytest.skip(str(error))
    order = np.argsort(distances, axis=1, kind="stable")
    for q in range(3):
        hits = np.flatnonzero(ids[order[q]] == 1) + 1
        assert found.ap[q] == pytest.approx(np.mean(np.arange(1, matches + 1) / hits), abs=1e-15)
        assert found.first_match[q] == hits[0] and found.inp[q] == matches / hits[-1]
