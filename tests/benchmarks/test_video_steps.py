# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The baselines of benchmarks/entries/video_methods.py compute what the models compute: values and gradients."""

import pytest
import torch

from benchmarks.entries import video_methods


@pytest.mark.parametrize("method", ["drsta", "rru_stim"])
def test_eager_steps_agree(method):
    shape = {"clips": 6, "frames": 3, "channels": 5, "height": 4, "width": 2}
    torch.manual_seed(1)
    steps = getattr(video_methods, f"{method}_providers")(shape, "cpu")
    found = []
    for step in steps.values():
        torch.manual_seed(2)  # dropout
        for _ in range(2):  # the second time the table of OIM is filled
            gradients = step()
        found.append(gradients)
    ours, eager = found
    assert sum(g is not None for g in ours) > 5
    for a, b in zip(ours, eager, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=3e-4 * float(b.abs().max().clamp(min=1e-3)), rtol=1e-3)
