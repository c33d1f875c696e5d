# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What the study of CASN measures: known shifts are found, known attention lies on known persons."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("jsonargparse", reason="needs the extra [train]")
pytest.importorskip("lightning", reason="needs the extra [train]")

from _support.casn_networks import tiny_batch, tiny_casn

from reidfast.data import ReidData
from reidfast.data.records import Records
from reidfast.engine.methods import find_method
from studies import _study, casn
from studies import casn_attention as attention


@pytest.mark.parametrize("lag", [-2, -1, 0, 1, 2])
def test_a_known_shift_is_found(lag):
    torch.manual_seed(0)
    long = torch.rand(20, 20)
    v, moved = long[:, 6:14], long[:, 6 - lag : 14 - lag]
    assert attention.best_lag(v, moved, 2).tolist() == [lag] * 20


def test_mass_is_the_share_on_the_mask(monkeypatch):
    def on_person(model, images):
        masks = torch.stack([torch.from_numpy(study_world(i)) for i in range(len(images))])
        return torch.nn.functional.adaptive_avg_pool2d(masks[:, None], (8, 4)).squeeze(1)

    def study_world(i):
        return world.render(1 + i % 40, 1 + i % 6, i // 40).mask.astype(np.float32)

    world = attention.World(seed=11, difficulty=0.5, height=64, width=32)
    monkeypatch.setattr(attention, "identity_maps", lambda model, images: torch.ones(len(images), 8, 4))
    even = attention.mass_on_person(None, (64, 32), 12, "cpu")
    assert even["mass"] == pytest.approx(even["cells"], abs=1e-6) and even["empty"] == 0
    monkeypatch.setattr(attention, "identity_maps", on_person)
    assert attention.mass_on_person(None, (64, 32), 12, "cpu")["mass"] > even["mass"] + 0.1


def some_data(tmp_path):
    pids, cams = np.repeat(np.arange(6), 4), np.tile([1, 1, 2, 2], 6)
    paths = tuple(f"{i}.jpg" for i in range(24))
    table = Records(tmp_path, paths, pids, cams)
    return ReidData("x", table, table.select(np.arange(0, 24, 2)), table)


def test_pairs_cross_cameras_and_hold_all_positives(tmp_path):
    data = some_data(tmp_path)
    query, gallery, same = attention.draw_test_pairs(data, 5, 0)
    assert same.sum() == 12 * 2 and (~same).sum() == 12 * 5 and (np.diff(query) >= 0).all()
    assert (data.query.camids[query] != data.gallery.camids[gallery]).all()
    assert ((data.query.pids[query] == data.gallery.pids[gallery]) == same).all()
    assert len({(i, j) for i, j in zip(query, gallery, strict=True)}) == len(query)


def test_closer_counts_comparisons_and_knows_no_scale():
    pairs = attention.DrawnPairs(np.array([0] * 5 + [1] * 3 + [2] * 2), np.arange(10),
                            np.array([1, 1, 0, 0, 0, 1, 0, 0, 1, 0], bool))  # fmt: skip
    d = np.array([0.1, 0.5, 0.2, 0.5, 0.7, 0.3, 0.3, np.nan, np.nan, 0.2])
    rows = attention.by_query(d, pairs)
    assert rows["closer"][:2] == [pytest.approx((3 + 1.5) / 6), 0.5] and np.isnan(rows["closer"][2])
    assert rows["positive"][:2] == [0.3, 0.3] and rows["negative"][1] == 0.3 and np.isnan(rows["negative"][2])
    small, large = attention.summary(attention.by_query(0.25 * d, pairs)), attention.summary(rows)
    assert small["gap"] == pytest.approx(large["gap"] / 4, abs=2e-5) and large["gap"] > 0
    assert small["closer"] == large["closer"] and small["relative"] == pytest.approx(large["relative"], abs=1e-4)


def test_bootstrap_draws_identities():
    rng = np.random.default_rng(0)
    a = np.stack([1 + 0.1 * rng.random(60), 1.2 + 0.1 * rng.random(60), rng.random(60)], 1)
    b = a * [0.5, 0.5, 1.0]
    b[0] = np.nan
    ids = np.repeat(np.arange(20), 3)
    d, low, high = _study.bootstrap(a, b, ids, lambda m: m[..., 1] / m[..., 0])
    assert max(abs(d), abs(low), abs(high)) < 1e-12  # all distances halved: nothing has changed
    d, low, high = _study.bootstrap(a, a + [0, 0.1, 0], ids, lambda m: m[..., 1] / m[..., 0])
    assert 0 < low < d < high
    one_each = _study.bootstrap(a, a + [0, 0, 1] * rng.normal(size=(60, 1)), np.arange(60), lambda m: m[..., 2])
    same = rng.normal(size=20)[ids][:, None] * [0, 0, 1]
    groups = _study.bootstrap(a, a + same, ids, lambda m: m[..., 2])
    assert (groups[2] - groups[1]) > 1.3 * (one_each[2] - one_each[1])  # three queries that move together are one


def test_the_head_alone_gives_the_embedding():
    for base in ("ide", "pcb"):
        model = tiny_casn(base).eval()
        images, _ = tiny_batch()
        with torch.no_grad():
            cells = model.backbone.forward_map(images)
            torch.testing.assert_close(attention.embedding_of(model, cells), model(images))
        assert "forward_map" not in vars(model.backbone)


def test_a_fitted_head_knows_pairs(tmp_path):
    model, table = tiny_casn("ide").eval(), some_data(tmp_path).train
    torch.manual_seed(1)
    person = 3 * torch.rand(6, 5, 1, 1, dtype=torch.float64)
    cells = person[table.pids] + 0.1 * torch.rand(24, 5, 8, 4, dtype=torch.float64)
    torch.nn.init.constant_(model.pair.weight, 0.0)
    attention.fit_pair_head(model, attention.Looked(torch.empty(24, 0), cells), table, "cpu", steps=200)
    features = model.frozen_features(cells)
    one, two = np.triu_indices(24, 1)
    q, same = model.pair(features[one], features[two]).detach().numpy(), table.pids[one] == table.pids[two]
    assert (q[same][:, None] > q[~same]).mean() > 0.95


def test_both_ways_to_sample_take_as_many_steps(tmp_path):
    config = find_method("casn").parse(["--data.ids=3", "--optim.epochs=20", "--optim.milestones=[16]"])
    table = Records(tmp_path, tuple(map(str, range(70))), np.repeat(np.arange(10), 7), np.tile([1, 2], 35))
    same = casn.same_steps(config, table)
    assert (same.optim.epochs, same.optim.milestones) == (12, [10])  # 3 steps of 12 against 5


def test_the_parts_of_a_data_set_share_nobody(tmp_path):
    data = some_data(tmp_path)
    kept = casn.held_out(data, 3, 2, 0)
    assert len(np.unique(kept["train"].pids)) == 3 and len(np.unique(kept["query"].pids)) == 2
    assert not set(kept["train"].pids) & set(kept["query"].pids) and set(kept["query"].pids) == set(
        kept["gallery"].pids
    )
    assert len(np.unique(casn.subset(data, 0, 2, 0)["train"].pids)) == 6


def test_table_compares_what_is_there(tmp_path):
    def run(arm, seed, shift):
        rng = np.random.default_rng(seed)
        ap = (0.4 + shift + 0.01 * rng.random(30)).tolist()
        queries = {"positive": [1.0 - shift] * 30, "negative": [1.0 + shift] * 30, "closer": [0.5 + shift] * 30}
        kind = {**attention.summary(queries), "undefined": 0.0, "queries": queries}
        pids = list(range(30))
        return {
            "arm": arm, "seed": seed, "rank1": 0.5 + shift, "mAP": 0.4 + shift, "ap": ap, "pids": pids,
            "first": [1] * 30, "consistency": {"pids": pids, **{k: kind for k in attention.KINDS}},
            "shift": {"followed": 0.5}, "mass": {"mass": 0.6}, "seconds": {"cpu": 60.0},
        }  # fmt: skip

    for arm, shift in (("sampler", 0.0), ("all", 0.1)):
        for seed in (0, 1):
            (tmp_path / f"{arm}-{seed}.json").write_text(json.dumps(run(arm, seed, shift)))
    found = _study.Results(tmp_path).read()
    (step,) = casn.differences(found)  # of the other steps an arm is missing
    assert (step["arm"], step["control"], step["seeds"]) == ("all", "sampler", [0, 1])
    assert step["mAP"] == pytest.approx([10.0] * 5) and step["pair"] == pytest.approx([10.0] * 5)
    assert step["rank1"] == [0.0] * 5  # read off the queries
    lines = casn.tables(found, [step])
    assert lines[2].startswith("| sampler | 50.0 ± 0.0 | 40.0 ± 0.0 | 50.0 ± 0.0") and "| 60.0 ± 0.0" in lines[3]
    assert lines[7].startswith("| all losses: all - sampler | +0.0 (+0.0 .. +0.0) | +10.0 (+10.0 .. +10.0)")
    assert len(lines) == 4 + 4 + 3 * 5
    short = casn.brief(json.loads((tmp_path / "all-0.json").read_text()))
    assert "queries" not in json.dumps(short) and short["consistency"]["pair"]["closer"] == pytest.approx(0.6)
    assert _study.without_folders({"a": {"b": "/tmp/x.npz"}, "c": 1}) == {"a": {"b": "x.npz"}, "c": 1}
