# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The paired bootstrap against a loop, and on differences that are known."""

from __future__ import annotations

import numpy as np
import pytest

from reidfast.engine import paired_bootstrap


def test_mean_and_error_agree_with_a_loop():
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    a = rng.random(len(ids))
    b = a + 0.05 + 0.1 * rng.normal(size=40)[ids]
    found = paired_bootstrap(a, b, ids, draws=4000)
    means = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(ids == i) for i in rng.integers(0, 40, 40)])
        means.append((b - a)[rows].mean())
    assert found.mean == pytest.approx((b - a).mean()) and found.queries == len(ids) and found.identities == 40
    assert found.error == pytest.approx(np.std(means), rel=0.1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.004) and found.high == pytest.approx(high, abs=0.004)


def test_known_differences():
    ids = np.arange(50)
    a = np.linspace(0, 1, 50)
    same = paired_bootstrap(a, a, ids)
    assert same.mean == 0 and same.low == same.high == 0 and same.p_value == 1
    better = paired_bootstrap(a, a + 0.1, ids)
    assert better.mean == pytest.approx(0.1) and better.low == pytest.approx(0.1) and better.p_value == 0
    worse = paired_bootstrap(a, a - 0.1, ids)
    assert worse.p_value == 0 and worse.high < 0
    assert paired_bootstrap(a, a[::-1], ids) == paired_bootstrap(a, a[::-1], ids)


def test_queries_without_a_score_are_left_out():
    found = paired_bootstrap([1, np.nan, 0.5, 0.5], [1, 1, np.nan, 0.75], [1, 2, 3, 4])
    assert found.queries == 2 and found.mean == 0.125


def test_rejects():
    with pytest.raises(ValueError, match="of one length"):
        paired_bootstrap([1.0], [1.0, 2.0], [1])
    with pytest.raises(ValueError, match="at least one query"):
        paired_bootstrap([np.nan], [1.0], [1])
    with pytest.raises(ValueError, match="draws >= 1"):
        paired_bootstrap([1.0], [1.0], [1], draws=0)
