# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""tools/figures.py: ratios and targets in words, and pages and chart that match the results."""

import importlib.util
import re
from pathlib import Path

import pytest

import reidfast

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "tools" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("baseline", "ratio", "text"),
    [
        ("torchreid", 20.8, "20.80x faster"),
        ("torchreid", 0.25, "4.00x slower"),
        ("q @ g.T alone", 1.6, "0.625x its time"),
        ("q @ g.T alone", 0.01, "100x its time"),
        ("memory_loss of the same shape", 2000, "0.05 % of its time"),
    ],
)
def test_ratios_in_words(figures, baseline, ratio, text):
    assert figures.compared(baseline, ratio) == text


@pytest.mark.parametrize(
    ("baseline", "ratio", "text"),
    [
        ("torchreid", 20, "at least 20x faster"),
        ("torch.compile of bmm", 1, "no slower"),
        ("q @ g.T alone", 1 / 1.15, "at most 1.15x its time"),
        ("memory_loss of the same shape", 100, "at most 1 % of its time"),
    ],
)
def test_targets_in_words(figures, baseline, ratio, text):
    assert figures.target_text(baseline, ratio) == text


def test_pages_and_chart_match_the_results(figures, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["figures.py", "--check"])
    assert figures.main() == 0, capsys.readouterr().err


def test_chart_names_the_machine_and_every_baseline(figures):
    svg = figures.chart()
    assert svg.count('class="b"') == len(figures.BARS)
    assert "threads" in svg and "torchreid cython (restated)" in svg


def test_readme_fits_one_screen_and_has_no_tables_of_figures():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 110 and "<!-- figures" not in text


def test_version_is_the_same_everywhere():
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited[1] == reidfast.__version__
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
