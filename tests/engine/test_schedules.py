# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The strong baseline's schedule: warm-up over 10 epochs, then steps at 40 and 70."""

import pytest

from reidfast.engine.schedules import warmup_multistep


def test_vector_warmup():
    want = [3.8150e-5, 7.2800e-5, 1.0745e-4, 1.4210e-4, 1.7675e-4, 2.1140e-4, 2.4605e-4, 2.8070e-4, 3.1535e-4, 3.5e-4]
    factor = warmup_multistep()
    assert [3.5e-4 * factor(e) for e in range(10)] == pytest.approx(want, rel=1e-4)
    for epoch, rate in ((39, 3.5e-4), (40, 3.5e-5), (69, 3.5e-5), (70, 3.5e-6), (120, 3.5e-6)):
        assert 3.5e-4 * factor(epoch - 1) == pytest.approx(rate)


def test_without_warmup():
    factor = warmup_multistep(warmup=0, milestones=(5,))
    assert [factor(e) for e in (0, 3, 4)] == pytest.approx([1, 1, 0.1])
