# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What the subcommands do with good input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidfast.engine import FeatureFile, FeatureTable, read_features, write_features
from reidfast.evaluation import rank, rank_reranked, subtract_camera_mean

STRIPES = ("--model", "color_stripes", "--size", "32x16", "--quiet")


def test_version_and_help_in_a_process_of_its_own(tmp_path):
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "reidfast", "evaluate", "nothing.npz"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert "expected a feature file, but nothing.npz does not exist" in done.stderr.splitlines()[-1]


def test_help_of_every_command(reidfast):
    for command in ("info", "data", "extract", "evaluate", "search", "report", "demo"):
        result = reidfast(command, "--help")
        assert result.status == 0 and f"usage: reidfast {command}" in result.out
    assert reidfast("--version").out.startswith("reidfast ")


def test_info(reidfast):
    facts = json.loads(reidfast("info", "--json").out)
    assert facts["versions"]["torch"] and facts["cpu"]["threads"] >= 1
    assert facts["build"]["native"] or facts["build"]["native_reason"]
    assert facts["build"]["cuda"] or facts["build"]["cuda_reason"]
    assert facts["backends"]["set_pool"]["cpu"]["serves"] in ("native", "reference")
    text = reidfast("info").out
    assert len(text.splitlines()) == 10 and facts["cpu"]["isa"] in text and f"verdict   {facts['verdict']}" in text
    assert "set_pool" in reidfast("info", "--ops").out
    assert "osnet_x0_25" in reidfast("info", "--models").out.split()


def test_data(reidfast, people):
    assert "market1501" in reidfast("data", "list").out.split()
    shown = json.loads(reidfast("data", "show", "folder", "--root", people, "--json").out)
    assert shown["splits"]["query"]["images"] == 36 and shown["splits"]["gallery"]["ids"] == 12
    assert "gallery" in reidfast("data", "show", "folder", "--root", people).out
    checked = reidfast("data", "check", "folder", "--root", people)
    assert checked.status == 0 and "108 images read, 0 broken" in checked.out


def test_data_check_names_broken_images(reidfast, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 16)).save(tmp_path / name / "1_0001.png")
    (tmp_path / "b" / "2_0001.jpg").write_bytes(b"no picture")
    result = reidfast("data", "check", "folder", "--root", tmp_path)
    assert result.status == 1 and "3 images read, 1 broken" in result.out and "2_0001.jpg" in result.out


def test_data_synthetic(reidfast, tmp_path):
    sheet = tmp_path / "sheet.png"
    options = ("--ids", 2, "--cameras", 2, "--images", 2, "--workers", 1, "--sheet", sheet)
    result = reidfast("data", "synthetic", tmp_path / "made", *options, "--json")
    assert result.status == 0 and json.loads(result.out)["splits"]["train"]["images"] == 4
    assert Image.open(sheet).size[0] > 100


def test_extract_then_evaluate_equals_evaluate_on_images(reidfast, people, tmp_path):
    out = tmp_path / "f.npz"
    made = reidfast("extract", out, "--data", "folder", "--root", people, *STRIPES, "--json")
    assert made.status == 0 and json.loads(made.out)["rows"] == {"query": 36, "gallery": 72}
    file = read_features(out)
    assert file.query.paths[0] == "query/0000/1_0000.png" and file.meta["model"] == "color_stripes"
    from_file = json.loads(reidfast("evaluate", out, "--json").out)
    from_images = json.loads(reidfast("evaluate", "--data", "folder", "--root", people, *STRIPES, "--json").out)
    for key in ("R1", "mAP", "mINP", "cmc", "AP", "valid_queries", "filter", "model"):
        assert from_file[key] == from_images[key], key
    assert from_file["R1"] > 0.5  # one in eleven by chance
    again = reidfast("extract", out, "--data", "folder", "--root", people, *STRIPES)
    assert again.status == 0 and "36 query, 72 gallery, 216 numbers each" in again.out


@pytest.mark.parametrize("camera_rule", [True, False])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_evaluate_equals_rank(reidfast, features, metric, camera_rule):
    options = [] if camera_rule else ["--no-camera-rule"]
    result = json.loads(reidfast("evaluate", features, "--metric", metric, "--json", "--max-rank", 7, *options).out)
    q, g = read_features(features).query, read_features(features).gallery
    cameras = (q.camids, g.camids) if camera_rule else ()
    ranking = rank(q.features, g.features, q.pids, g.pids, *cameras, metric=metric, max_rank=7)
    assert (
        result["mAP"] == ranking.mean_ap
        and result["cmc"] == ranking.cmc.tolist()
        and result["mINP"] == ranking.mean_inp
    )
    assert 0 < result["mAP"] < 1


def test_evaluate_table_and_plot(reidfast, features, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    plot = tmp_path / "cmc.png"
    result = reidfast("evaluate", features, "--plot", plot, "--protocol", "cuhk03", "--max-rank", 10)
    assert result.status == 0 and "mAP" in result.out and "20 queries, 60 gallery images" in result.out
    assert Image.open(plot).size == (720, 480)


def test_search(reidfast, features):
    found = json.loads(reidfast("search", features, "--k", 4, "--query", 3, 5, "--json").out)
    file = read_features(features)
    assert [item["query"]["row"] for item in found] == [3, 5]
    for item in found:
        query = file.query.features[item["query"]["row"]].astype(float)
        gallery = file.gallery.features.astype(float)
        cosine = 1 - gallery @ query / np.linalg.norm(gallery, axis=1) / np.linalg.norm(query)
        same = (file.gallery.pids == item["query"]["pid"]) & (file.gallery.camids == item["query"]["camid"])
        order = [i for i in np.argsort(cosine, kind="stable") if not same[i]][:4]
        assert [r["row"] for r in item["results"]] == order
        assert all(r["match"] == (r["pid"] == item["query"]["pid"]) for r in item["results"])
    assert reidfast("search", features).out.count("\n") >= 12


def test_search_with_pictures(reidfast, people, tmp_path):
    out = tmp_path / "f.npz"
    reidfast("extract", out, "--data", "folder", "--root", people, *STRIPES)
    picture = people / "gallery" / "0003" / "2_0001.png"
    options = ("--model", "color_stripes", "--size", "32x16", "--k", 3, "--json")
    (item,) = json.loads(reidfast("search", out, "--image", picture, *options).out)
    assert item["results"][0]["path"] == "gallery/0003/2_0001.png" and item["results"][0]["distance"] < 1e-5


def test_report(reidfast, people, tmp_path):
    for package in ("jinja2", "matplotlib"):
        pytest.importorskip(package, reason=f"needs {package}")
    out, page, picture = tmp_path / "f.npz", tmp_path / "r.html", tmp_path / "r.png"
    reidfast("extract", out, "--data", "folder", "--root", people, *STRIPES)
    result = reidfast("report", out, "--out", page, "--queries", 3, "--k", 5, "--order", "worst", "--picture", picture)
    text = page.read_text()
    assert result.status == 0 and text.count('class="query"') == 3
    assert text.count('class="right"') + text.count('class="wrong"') == 15 and 'src="/' not in text
    worst = min(v for v in json.loads(reidfast("evaluate", out, "--json").out)["AP"])
    assert f"AP {100 * worst:.1f}" in text
    assert Image.open(picture).size[1] > 300


def test_demo(reidfast, tmp_path):
    pytest.importorskip("lightning", reason="needs the extra [train]")
    out = tmp_path / "demo"
    small = ("--out", out, "--ids", 3, "--train-ids", 4, "--cameras", 2, "--images", 2, "--epochs", 1)
    result = reidfast("demo", *small)
    assert result.status == 0, result.err
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["extractors"]) == ["color_stripes", "untrained", "trained"]
    assert metrics["people"]["queries"] == 6 and metrics["extractors"]["color_stripes"]["R1"] >= 0
    training = metrics["training"]
    assert metrics["extractors"]["untrained"]["mAP"] == training["before"]["mAP"]
    assert metrics["extractors"]["trained"]["mAP"] == training["history"][-1]["mAP"]
    assert (out / "run" / "last.ckpt").is_file() and (out / "report.html").stat().st_size > 1000
    assert Image.open(out / "ranked_lists.png").size[0] > 100 and str(out) in result.out
    again = json.loads(reidfast("demo", *small, "--json").out)  # nothing is left to do
    assert again["training"]["history"] == training["history"]


def test_demo_without_the_training_extra(reidfast, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    result = reidfast("demo", "--out", tmp_path / "d", "--ids", 2, "--train-ids", 2, "--cameras", 2, "--json")
    assert result.status == 0 and list(json.loads(result.out)["extractors"]) == ["color_stripes"]
    assert 'note: no training: train: lightning is missing; pip install "reidfast[train]"' in result.err


@pytest.mark.data
def test_published_scores_of_stored_features(reidfast, reidfast_data):
    path = reidfast_data / "features" / "osnet_x0_25_msmt17__market751_holdout.npz"
    result = json.loads(reidfast("evaluate", path, "--json").out)
    assert round(100 * result["R1"], 1) == 72.3 and round(100 * result["mAP"], 1) == 48.5


def test_test_time_options(reidfast, features):
    plain = json.loads(reidfast("evaluate", features, "--json").out)
    q, g = read_features(features).query, read_features(features).gallery
    labels = (q.pids, g.pids, q.camids, g.camids)
    result = json.loads(reidfast("evaluate", features, "--rerank", "--json").out)
    assert result["mAP"] == rank_reranked(q.features, g.features, *labels).mean_ap != plain["mAP"]
    assert result["metric"] == "k-reciprocal"
    result = json.loads(reidfast("evaluate", features, "--camera-mean", "--json").out)
    rows = subtract_camera_mean(np.concatenate([q.features, g.features]), np.concatenate([q.camids, g.camids]))
    assert result["mAP"] == rank(rows[:20], rows[20:], *labels).mean_ap != plain["mAP"]
    expanded = reidfast("evaluate", features, "--query-expansion", 3, "--camera-mean")
    assert "camera means subtracted, queries expanded by 3 neighbours" in expanded.out


def test_compare(reidfast, features, tmp_path):
    file = read_features(features)
    rng = np.random.default_rng(0)

    def noisy(table):
        rows = table.features + rng.normal(0, 1.5, table.features.shape).astype(np.float32)
        return FeatureTable(rows, table.pids, table.camids, table.paths)

    write_features(tmp_path / "b.npz", FeatureFile({name: noisy(table) for name, table in file.splits.items()}))
    result = json.loads(reidfast("evaluate", features, "--compare", tmp_path / "b.npz", "--json").out)
    other = json.loads(reidfast("evaluate", tmp_path / "b.npz", "--json").out)
    compared = result["compared"]
    assert compared["mAP"] == other["mAP"] and compared["difference"]["mAP"]["identities"] == 10
    assert compared["difference"]["mAP"]["mean"] == pytest.approx(other["mAP"] - result["mAP"])
    assert compared["difference"]["R1"]["mean"] == pytest.approx(other["R1"] - result["R1"])
    assert compared["difference"]["mAP"]["high"] < 0
    text = reidfast("evaluate", features, "--compare", tmp_path / "b.npz").out
    assert "95 % interval" in text
