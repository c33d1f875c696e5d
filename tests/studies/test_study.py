# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What the studies share: results are resumed, settings are not mixed, comparisons and tables by hand."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("studies._study", reason="the studies are beside the checkout, not in the wheel")

from studies import _study


def test_results_are_resumed_seed_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, calls = _study.Results(tmp_path), []

    def measure(arm: str, seed: int, factor: float) -> _study.Run:
        calls.append((arm, seed))
        return {"score": factor * seed}

    for seeds in ([0], [0, 1]):
        results.sweep(["a", "b c=1"], seeds, lambda run: f"{run['score']}", measure, 0.5)
    assert calls == [("a", 0), ("b c=1", 0), ("a", 1), ("b c=1", 1)]
    runs = results.read()
    assert [(run["seed"], run["score"]) for run in runs["b c=1"]] == [(0, 0.0), (1, 0.5)]
    assert len(capsys.readouterr().out.splitlines()) == 4
    results.path("a", 0).unlink()
    results.sweep(["a", "b c=1"], [0, 1], str, measure, 0.5)
    assert calls[4:] == [("a", 0)]


def test_a_folder_holds_runs_of_one_setting(tmp_path: Path) -> None:
    results = _study.Results(tmp_path)
    results.hold({"epochs": 2, "set": []})
    results.hold({"epochs": 2, "set": []})
    with pytest.raises(SystemExit, match="holds runs with other epochs; choose another --out"):
        results.hold({"epochs": 3, "set": []})
    assert not results.read()  # settings are no result


def test_comparison_takes_the_mean_over_seeds() -> None:
    rng = np.random.default_rng(0)
    first, ids = rng.random((3, 40)), np.arange(40) // 2
    d = _study.compare(first, first + [[0.1], [0.2], [0.3]], ids)
    assert d.mean == pytest.approx(0.2) and d.low == pytest.approx(0.2) and d.identities == 20


def test_ordered_counts_pairs() -> None:
    good, bad = np.array([0.3, 0.9, 0.5]), np.array([0.5, 0.1])
    assert _study.ordered(good, bad) == pytest.approx((1 + 2 + 1.5) / 6)


def test_tables() -> None:
    assert _study.spread([1.0]) == "1.0" and _study.spread([1.0, 3.0], 2) == "2.00 ± 1.41"
    assert _study.markdown(("a", "b"), [("1", "2")]) == ["| a | b |", "|---|---|", "| 1 | 2 |"]


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    study = _study.Study("x", "What it is about.")

    @study.command("run it", _study.choose({"one": 1, "two": 2}), _study.SEEDS, _study.SET)
    def run(options: argparse.Namespace) -> None:
        print(options.arms, options.seeds, options.set)

    study.main(["run", "--seeds", "3", "--set", "loss.k=2", "optim.lr=1"])
    assert capsys.readouterr().out == "['one', 'two'] [3] ['--loss.k=2', '--optim.lr=1']\n"
    with pytest.raises(SystemExit):
        study.main(["run", "--arms", "three"])
    assert "invalid choice: 'three'" in capsys.readouterr().err
