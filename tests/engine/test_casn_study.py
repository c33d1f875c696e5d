# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What the study of CASN measures: known shifts are found, known attention lies on known persons."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("jsonargparse", reason="needs the extra [train]")
pytest.importorskip("lightning", reason="needs the extra [train]")

from benchmarks.experiments import casn as study
from reidfast.data import ReidData
from reidfast.data.records import Records


@pytest.mark.parametrize("lag", [-2, -1, 0, 1, 2])
def test_a_known_shift_is_found(lag):
    torch.manual_seed(0)
    long = torch.rand(20, 20)
    v, moved = long[:, 6:14], long[:, 6 - lag : 14 - lag]
    assert study.best_lag(v, moved, 2).tolist() == [lag] * 20


def test_mass_is_the_share_on_the_mask(monkeypatch):
    def on_person(model, images):
        masks = torch.stack([torch.from_numpy(study_world(i)) for i in range(len(images))])
        return torch.nn.functional.adaptive_avg_pool2d(masks[:, None], (8, 4)).squeeze(1)

    def study_world(i):
        return world.render(1 + i % 40, 1 + i % 6, i // 40).mask.astype(np.float32)

    world = study.World(seed=11, difficulty=0.5, height=64, width=32)
    monkeypatch.setattr(study, "identity_maps", lambda model, images: torch.ones(len(images), 8, 4))
    even = study.mass_on_person(None, (64, 32), 12, "cpu")
    assert even["mass"] == pytest.approx(even["cells"], abs=1e-6) and even["empty"] == 0
    monkeypatch.setattr(study, "identity_maps", on_person)
    assert study.mass_on_person(None, (64, 32), 12, "cpu")["mass"] > even["mass"] + 0.1


def test_pairs_cross_cameras_and_come_in_twos(tmp_path):
    pids, cams = np.repeat(np.arange(6), 4), np.tile([1, 1, 2, 2], 6)
    paths = tuple(f"{i}.jpg" for i in range(24))
    table = Records(tmp_path, paths, pids, cams)
    data = ReidData("x", Records.empty(tmp_path), table.select(np.arange(0, 24, 2)), table)
    pairs = study.draw_test_pairs(data, 5, 0)
    assert len(pairs) == 10 and [p[3] for p in pairs] == [True, False] * 5
    for a, b, pid, same in pairs:
        i, j = int(a.stem), int(b.stem)
        assert cams[i] != cams[j] and (pids[i] == pids[j]) == same and pids[i] == pid


def test_table_compares_what_is_there(tmp_path):
    def run(arm, seed, shift):
        rng = np.random.default_rng(seed)
        ap = (0.4 + shift + 0.01 * rng.random(30)).tolist()
        distances = [1.0 - shift, 1.0 + shift] * 30
        identity = {"gap": 0.1, "distances": distances}
        pair = {"gap": 2 * shift, "distances": distances}
        pids = [i // 2 for i in range(60)]
        return {
            "arm": arm, "seed": seed, "rank1": 0.5 + shift, "mAP": 0.4 + shift, "ap": ap, "pids": list(range(30)),
            "consistency": {"same": [True, False] * 30, "pids": pids, "identity": identity, "pair": pair},
            "shift": {"followed": 0.5}, "mass": {"mass": 0.6},
        }  # fmt: skip

    for arm, shift in (("sampler", 0.0), ("all", 0.1)):
        for seed in (0, 1):
            (tmp_path / f"{arm}-{seed}.json").write_text(json.dumps(run(arm, seed, shift)))
    lines = study.table(tmp_path, "sampler")
    assert len(lines) == 4 and lines[2].startswith("| sampler | 2 | 50.0")
    assert "+10.0" in lines[3] and "+0.200 (+0.200 .. +0.200)" in lines[3]
