# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Pairs of cameras, and runs over seeds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from reidfast.cli import main
from reidfast.engine import FeatureFile, FeatureTable, write_features
from reidfast.engine.tables import camera_pairs, runs_table
from reidfast.evaluation import rank


def features(seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, 6))

    def table(count):
        pids, cams = rng.integers(0, 8, count), rng.integers(1, 4, count)
        return (centres[pids] + rng.normal(0, 0.9, (count, 6))).astype(np.float32), pids, cams

    return table(60), table(90)


@pytest.mark.parametrize("camera_rule", [True, False])
def test_camera_pairs_are_rank_of_the_parts(camera_rule):
    (x, p, c), (y, q, d) = features()
    found = camera_pairs(x, y, p, q, c, d, camera_rule=camera_rule, metric="euclidean")
    assert found.query_cameras == found.gallery_cameras == [1, 2, 3]
    for i, a in enumerate((1, 2, 3)):
        for j, b in enumerate((1, 2, 3)):
            if camera_rule and a == b:
                assert math.isnan(found.rank1[i, j]) and found.queries[i, j] == 0
                continue
            m, n = c == a, d == b
            cameras = (c[m], d[n]) if camera_rule else ()
            alone = rank(x[m], y[n], p[m], q[n], *cameras, metric="euclidean")
            assert found.rank1[i, j] == alone.cmc[0] and found.mean_ap[i, j] == alone.mean_ap
            assert found.queries[i, j] == alone.valid.sum()


def test_a_pair_without_a_common_identity_is_nan():
    x = np.eye(3, dtype=np.float32)
    found = camera_pairs(x, x, [1, 2, 3], [1, 2, 9], [1, 1, 2], [2, 3, 3])
    assert found.query_cameras == [1, 2] and found.gallery_cameras == [2, 3]
    assert found.mean_ap[0].tolist() == [1.0, 1.0]
    assert math.isnan(found.mean_ap[1, 0]) and math.isnan(found.mean_ap[1, 1])
    assert found.queries.tolist() == [[1, 1], [0, 0]]


def test_by_camera_and_compare_two_files_on_the_command_line(tmp_path, capsys):
    for seed in (0, 1):
        (x, p, c), (y, q, d) = features()
        noise = np.random.default_rng(seed).normal(0, 0.3 + seed, x.shape).astype(np.float32)
        splits = {"query": FeatureTable(x + noise, p, c), "gallery": FeatureTable(y, q, d)}
        write_features(tmp_path / f"{seed}.npz", FeatureFile(splits))
    one, two = str(tmp_path / "0.npz"), str(tmp_path / "1.npz")

    assert main(["evaluate", one, "--by-camera", "--json", "--camera-mean"]) == 0
    found = json.loads(capsys.readouterr().out)["by_camera"]
    assert found["query_cameras"] == [1, 2, 3] and found["R1"][0][0] is None and 0 < found["mAP"][0][1] < 1
    assert main(["evaluate", one, "--by-camera"]) == 0
    assert "camera 3" in capsys.readouterr().out

    assert main(["evaluate", one, "--compare", two, "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert main(["evaluate", "--compare", one, two, "--json"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert before["compared"] == both["compared"] and both["compared"]["with"] == two
    assert both["compared"]["difference"]["mAP"]["mean"] < 0 and before["mAP"] == both["mAP"]
    for arguments in ([one, "--compare", one, two], ["--compare", one], [one, "--by-camera", "--rerank"]):
        assert main(["evaluate", *arguments]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("option", [["--camera-mean"], ["--query-expansion", "3"], []])
def test_options_at_test_time_change_the_result_and_say_so(option, tmp_path, capsys):
    (x, p, c), (y, q, d) = features(2)
    y = y + 3 * d[:, None]  # cameras that see things their own way
    splits = {"query": FeatureTable(x + 3 * c[:, None], p, c), "gallery": FeatureTable(y.astype(np.float32), q, d)}
    write_features(tmp_path / "f.npz", FeatureFile(splits))
    assert main(["evaluate", str(tmp_path / "f.npz"), "--json", *option]) == 0
    found = json.loads(capsys.readouterr().out)
    plain = rank(splits["query"].features, splits["gallery"].features, p, q, c, d)
    if option == ["--camera-mean"]:
        assert found["camera_mean"] and found["mAP"] > plain.mean_ap + 0.1
    elif option:
        assert found["query_expansion"] == 3 and found["mAP"] != plain.mean_ap
    else:
        assert found["mAP"] == plain.mean_ap


def run(folder, seed, lr, scores, before=0.1):
    folder.mkdir()
    history = [{"epoch": i + 1.0, "rank1": s + 0.1, "mAP": s} for i, s in enumerate(scores)]
    config = {"out": str(folder), "seed": seed, "optim": {"lr": lr, "epochs": 2}, "data": {"name": "x", "options": {}}}
    content = {"before": {"rank1": before, "mAP": before}, "history": history, "config": config}
    (folder / "metrics.json").write_text(json.dumps(content))
    return str(folder)


def test_runs_over_seeds(tmp_path, capsys):
    folders = [
        run(tmp_path / "a0", 0, 0.1, [0.5, 0.4]),
        run(tmp_path / "a1", 1, 0.1, [0.3, 0.6]),
        run(tmp_path / "b0", 0, 0.2, [0.2, 0.7]),
    ]
    first, second = runs_table(folders)
    assert first.name == "optim.lr=0.1" and second.name == "optim.lr=0.2"
    assert first.seeds == [0, 1] and first.epochs == [2, 2] and second.runs == [folders[2]]
    map_ = first.scores["mAP"]
    assert map_["mean"] == pytest.approx(0.5) and map_["std"] == pytest.approx(0.2 / math.sqrt(2)) and map_["n"] == 2
    assert math.isnan(second.scores["mAP"]["std"]) and second.scores["rank1"]["mean"] == pytest.approx(0.8)
    assert runs_table(folders, which="best")[0].epochs == [1, 2]
    assert runs_table(folders[:1], which="before")[0].scores["mAP"]["mean"] == 0.1
    assert runs_table(folders[:2])[0].name == folders[0]

    assert main(["table", *folders]) == 0
    assert "50.0 ± 14.1" in capsys.readouterr().out
    assert main(["table", *folders, "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "| runs | seeds | rank1 | mAP |"
    assert main(["table", *folders, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["scores"]["mAP"]["std"] is None
    for arguments, words in (([str(tmp_path)], "no metrics.json in"), ([folders[0], "--which", "third"], "'third'")):
        assert main(["table", *arguments]) == 2
        assert words in capsys.readouterr().err


def test_a_real_run_has_a_row(small_run):
    row = runs_table([small_run])[0]
    assert row.seeds == [0] and set(row.scores) == {"rank1", "mAP", "mINP"}
