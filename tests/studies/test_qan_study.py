# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The study of QAN, on made-up maps: its pieces by hand, and that it runs, resumes and repeats itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

pytest.importorskip("studies.qan", reason="the studies are beside the checkout, not in the wheel")

from reidfast.data import Records, Tracklets, write_synthetic
from reidfast.models import create_model, save_weights
from studies import corruption, qan
from studies._study import Results


def made(persons: int, seed: int) -> qan.Frames:
    """Persons with two sets of three images; spoilt features are half somebody else, and the maps show it."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(persons), 6)
    camids, tracklet = np.tile(np.repeat([1, 2], 3), persons), np.repeat(np.arange(2 * persons), 3)
    columns = {"tracklet": tracklet, "frame": np.tile(np.arange(3), 2 * persons)}
    records = Records(".", tuple(map(str, range(len(pids)))), pids, camids, columns)
    centres, n = rng.standard_normal((persons, 512)), len(pids)
    clean = centres[pids] + 0.8 * rng.standard_normal((n, 512))
    spoilt = 0.4 * clean + 2 * centres[rng.permutation(pids)]
    maps, kinds = rng.standard_normal((2, n, 96, 8, 4)), qan.kinds_of(n)
    maps[1, :, :3] += 2.0 * np.eye(3)[kinds][:, :, None, None]
    features = torch.tensor(np.stack([clean, spoilt]), dtype=torch.float32)
    return qan.Frames(Tracklets.of(records), features, torch.tensor(maps).half(), kinds)


def test_spoilt_frames() -> None:
    low, high = qan.spoilt_rows(20000, 0.2, 1), qan.spoilt_rows(20000, 0.4, 1)
    assert abs(low.mean() - 0.2) < 0.01 and abs(high.mean() - 0.4) < 0.01 and (low <= high).all()
    assert (qan.spoilt_rows(20000, 0.4, 2) != high).any() and not qan.spoilt_rows(100, 0.0, 1).any()
    assert np.bincount(qan.kinds_of(9000)).min() > 2800
    rng = np.random.default_rng(0)
    image, other = (Image.fromarray(rng.integers(0, 255, (128, 64, 3), dtype=np.uint8)) for _ in range(2))
    for kind in corruption.KINDS:
        one, two = (np.asarray(corruption.spoil(image, kind, row, 0, other)) for row in (3, 4))
        again = np.asarray(corruption.spoil(image, kind, 3, 0, other))
        assert one.shape == (128, 64, 3) and (one == again).all() and (one != two).any()
        changed = (one != np.asarray(image)).any(2).mean()
        assert changed > 0.2 and (changed < 0.8 or kind != "occlusion")


def test_consistency_is_the_formula() -> None:
    x, offsets = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 4, 6])
    found = qan.consistency(x, offsets)
    assert found[0] == 1
    for i in (1, 2, 3):
        cosines = [functional.cosine_similarity(x[i], x[j], dim=0) for j in (1, 2, 3) if j != i]
        torch.testing.assert_close(found[i], (8 * torch.stack(cosines).mean()).exp())


def test_negatives() -> None:
    x = torch.tensor([[0.0], [1.0], [1.2], [5.0], [0.1]])
    anchor, positive, negative = qan.nearest_negatives(x, torch.tensor([0, 0, 1, 1, 2]))
    assert anchor.tolist() == [0, 1, 2, 3] and positive.tolist() == [1, 0, 3, 2] and negative.tolist() == [4, 2, 1, 1]


def test_runs_and_repeats(tmp_path: Path) -> None:
    train, test = made(30, 0), made(30, 1)
    run, results = ("quality", False, 0.4, None), Results(tmp_path)

    def once() -> bytes:
        results.run(qan.name_of(run), 0, qan.line, qan.work, run, 0, train, test, 16)
        return results.path(qan.name_of(run), 0).read_bytes()

    kept = once()
    stamp = results.path(qan.name_of(run), 0).stat().st_mtime_ns
    assert once() == kept and results.path(qan.name_of(run), 0).stat().st_mtime_ns == stamp  # taken from the file
    first, second = json.loads(kept), qan.work(run, 0, train, test, 16)
    assert first["rates"] == second["rates"] and first["auc"] == second["auc"]
    assert set(first["auc"]) == set(corruption.KINDS) and set(first["rates"]) == {"0.4"}
    ap = {way: np.mean(values) for way, values in first["rates"]["0.4"]["ap"].items()}
    assert ap["model"] > ap["mean"] and ap["oracle"] > ap["mean"]
    assert np.mean(list(first["auc"].values())) > 0.6


def test_maps_are_extracted_block_by_block(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_weights(create_model("osnet_x0_25"), tmp_path / "osnet.npz")
    table = write_synthetic(tmp_path / "people", ids=4, cameras=2, images=3, height=64, width=32, test=0.0).train
    for folder, batch, block in (("whole", 64, 1024), ("parts", 3, 8)):
        qan.extract(table, str(tmp_path / "osnet.npz"), tmp_path / folder, len(table), batch, block)
    files = sorted((tmp_path / "parts").glob("*.npz"))
    assert len(files) == 2 * -(-len(table) // 8)
    (tmp_path / "parts" / "spoilt-8.npz").unlink()
    qan.extract(table, str(tmp_path / "osnet.npz"), tmp_path / "parts", len(table), 3, 8)  # the one that is missing
    columns = {"tracklet": np.arange(len(table)) // 3, "frame": np.arange(len(table)) % 3}
    sets = Tracklets.of(Records(table.root, table.paths, table.pids, table.camids, columns))
    whole, parts = (qan.Frames.of(sets, len(table), tmp_path / folder) for folder in ("whole", "parts"))
    torch.testing.assert_close(whole.features, parts.features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.maps, parts.maps, rtol=1e-2, atol=1e-2)
    assert (whole.features[0] != whole.features[1]).any(1).all()  # every image is spoilt in the second version


def test_summary() -> None:
    """Made by hand: QAN right for 3 of 4 queries, the mean for 1, who knows for all."""
    results = {}
    for seed in range(2):
        for run in qan.runs():
            hit = {"model": [1, 1, 1, 0] if run[0] == "quality" else [1, 0, 0, 0], "oracle": [1, 1, 1, 1]}
            hit |= {"mean": [1, 0, 0, 0], "max": [0, 0, 0, 0], "consistency": [1, 1, 0, 0]}
            rates = {f"{rate:g}": {"hit": hit, "ap": hit} for rate in qan.RATES}
            results[run, seed] = {"cpu_s": 1.0, "rates": rates, "auc": dict.fromkeys(corruption.KINDS, 0.9)}
    found = qan.summarise(results, 2, draws=200)
    compared = found["compared"]["0.4"]
    assert compared["qan_minus_mean"] == 50 and compared["gap"] == 75 and compared["share_of_gap_closed"] == 0.667
    assert compared["qan_minus_consistency"] == 25 and compared["qan_minus_mean_95"][0] >= 0
    rows = {(r["spoilt"], r["pooling"]): r["rank1"] for r in found["rank1"]}
    assert rows[0.4, "QAN"] == 75 and rows[0.4, "trained head, mean"] == 25 and rows[0.2, "trained head, oracle"] == 100
    assert found["auc"]["the kind itself left out of training"]["blur"]["mean"] == 0.9
