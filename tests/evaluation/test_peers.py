# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The peers' own evaluators on data without ties: the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from ranking_cases import labels

from benchmarks import peers
from reidfast.evaluation import rank_distances, sampled_cmc


def peer(get):
    try:
        return get()
    except Exception as error:
        pytest.skip(f"this peer cannot be had here: {error!s:.120}")


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    q, g = 150, 900
    distances = rng.permutation(q * g).reshape(q, g).astype(np.float32)
    return distances, labels(rng, q, g, 40, cameras=6, junk=False)


def test_fastreid_cython(case):
    distances, given = case
    cmc, ap, inp = peer(peers.fastreid_cython).evaluate_cy(distances, *given, 50)
    found = rank_distances(distances, *given)
    np.testing.assert_allclose(found.cmc, cmc, atol=1e-6)
    np.testing.assert_allclose(found.ap[found.valid], ap, atol=2e-6)  # float32 there
    np.testing.assert_allclose(found.inp[found.valid], inp, atol=2e-6)


def test_torchreid_cython_restated(case):
    distances, given = case
    cmc, mean_ap = peer(peers.torchreid_cython).market1501(distances, *given, 50)
    found = rank_distances(distances, *given)
    np.testing.assert_allclose(found.cmc, cmc, atol=1e-6)
    assert found.mean_ap == pytest.approx(mean_ap, abs=2e-6)


def test_torchreid_numpy(case, monkeypatch):
    distances, given = case
    module = peer(peers.torchreid_numpy)
    cmc, mean_ap = module.eval_market1501(distances, *given, 50)
    found = rank_distances(distances, *given)
    np.testing.assert_allclose(found.cmc, cmc, atol=1e-6)
    assert found.mean_ap == pytest.approx(mean_ap, abs=1e-14)
    # Its single-shot draw, after the same seed. It still says np.bool, which numpy 2 brought back.
    np.random.seed(5)
    drawn, mean_ap = module.eval_cuhk03(distances[:40], *(x[:40] if len(x) == 150 else x for x in given), 20)
    some = [x[:40] if len(x) == 150 else x for x in given]
    np.testing.assert_allclose(sampled_cmc(distances[:40], *some, max_rank=20, seed=5), drawn, atol=1e-6)
    assert rank_distances(distances[:40], *some, protocol="cuhk03").mean_ap == pytest.approx(mean_ap, abs=1e-14)
