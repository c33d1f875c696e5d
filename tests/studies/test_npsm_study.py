# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The study of NPSM: its tables and differences, from results made by hand."""

import json

import pytest

pytest.importorskip("jsonargparse", reason="needs the extra [train]")
pytest.importorskip("lightning", reason="needs the extra [train]")

from studies import npsm
from studies._study import Results, keep


def test_tables_and_differences(tmp_path, capsys):
    results = Results(tmp_path / "synthetic")
    for seed in (0, 1):
        for arm, part, ap in (
            ("two-stage, objectness", "one box", [0.25, 0.5, None]),
            ("npsm, objectness", "final box by attention", [0.5, 0.75, None]),
        ):
            scores = {"mAP": sum(ap[:2]) / 2 + seed / 10, "top1": 0.5, "recall": 0.75, "ap": ap, "pids": [0, 1, 2]}
            keep(results.path(arm, seed), {"arm": arm, "seed": seed, part: scores})
    keep(tmp_path / "npsm-0" / "run.json", {"seconds": 1.0})
    npsm.study.main(["table", "--out", str(tmp_path), "--results", str(tmp_path / "all.json")])
    lines = capsys.readouterr().out.splitlines()
    assert "| two-stage, objectness, one box | 2 | 42.5 ± 7.1 | 50.0 ± 0.0 | 75.0 ± 0.0 |" in lines
    content = json.loads((tmp_path / "all.json").read_text())
    (difference,) = content["paired differences of AP"].values()  # the other arms are missing
    assert difference["mean"] == pytest.approx(0.25) and difference["identities"] == 4  # persons of two seeds
    assert content["training"] == {"npsm-0": {"seconds": 1.0}} and "ap" not in str(content["synthetic"])
