# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Pictures of attention."""

import numpy as np
import pytest

from reidfast.report import draw_attention, overlay


def test_heat_lies_where_the_attention_is():
    grey = np.full((16, 8, 3), 100, np.uint8)
    heat = np.zeros((4, 2))
    heat[3, 1] = 5.0
    shown = overlay(grey, heat).astype(int)
    assert (shown[:6] == 100).all()  # nothing attended, nothing coloured
    red, _, blue = shown[15, 7]
    assert red > 180 and blue < 60
    assert np.array_equal(overlay(grey, heat), overlay(grey, 7 * heat + 2))
    assert np.array_equal(overlay(grey, np.ones((4, 2))), grey)


def test_sheet_has_a_row_a_pair_and_a_column_a_network():
    pictures = [np.full((16, 8, 3), i, np.uint8) for i in range(6)]
    maps = np.random.default_rng(0).random((6, 4, 2))
    sheet = draw_attention(pictures, {"IDE": maps, "CASN": maps}, height=16, width=8)
    assert sheet.size == (6 + 3 * 22, 20 + 3 * 22)
    pixels = np.asarray(sheet)
    assert [int(pixels[20 + 22 * (i // 2) + 8, 6 + 8 * (i % 2) + 4, 0]) for i in range(6)] == list(range(6))
    assert np.array_equal(pixels[20:36, 28:44], pixels[20:36, 50:66])


def test_rejects():
    with pytest.raises(ValueError, match="a map for each picture"):
        draw_attention([np.zeros((4, 4, 3), np.uint8)] * 2, {"IDE": np.zeros((1, 2, 2))})
    with pytest.raises(ValueError, match=r"\(h, w\)"):
        overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((1, 2, 2)))
