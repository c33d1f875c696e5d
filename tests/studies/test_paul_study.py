# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The study of PAUL's arms, on rendered people: resumable file by file, the table, what it refuses."""

import json
import shlex

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("lightning", reason="needs the extra [train]")
pytest.importorskip("jsonargparse", reason="needs the extra [train]")
pytest.importorskip("sklearn", reason="needs the extra [train]")

from reidfast.data import load_dataset, write_synthetic
from reidfast.losses import PEDAL
from reidfast.models import create_model, save_weights
from reidfast.nn import MemoryBank
from studies._study import Results
from studies.cached import ChosenPEDAL, settle, settled
from studies.paul import study
from studies.watch import describe, describe_clusters, describe_memory

ARMS = "controls adabn both cluster-contrast"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds of some arms on cached maps, from a network of random weights."""
    base = tmp_path_factory.mktemp("paul")
    torch.manual_seed(0)
    save_weights(create_model("osnet_x0_25"), base / "osnet.npz")
    data = write_synthetic(base / "people", ids=30, cameras=3, images=3, height=64, width=32, seed=3)
    rows = [
        f"{path},{pid},{camid},{split}\n"
        for split, records in data.splits.items()
        for path, pid, camid in zip(records.paths, records.pids, records.camids, strict=True)
    ]
    (base / "people" / "all.csv").write_text("path,pid,camid,split\n" + "".join(rows))
    return base


def run(folder, *more, arms=ARMS, out="out"):
    start = f"run --weights {folder}/osnet.npz --out {folder}/{out} --target {folder}/people/all.csv --epochs 1"
    size = "--height 64 --width 32 --cached --set-cluster loss.k1=6 loss.k2=2"
    size += " --set loss.k=3 data.batch=20 optim.lr=0.01"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REIDFAST_CACHE", str(folder / "cache"))
        study.main(shlex.split(f"{start} --arms {arms} {size}") + list(more))


def load_run(path):
    return json.loads(path.read_text())


def test_arms_seeds_and_table(folder, capsys):
    run(folder, "--seeds", "0")
    first = (folder / "out" / "both-0.json").read_bytes()
    run(folder, "--seeds", "0", "1")
    assert (folder / "out" / "both-0.json").read_bytes() == first  # what is there is not run again
    runs = Results(folder / "out").read()
    assert {len(runs[arm]) for arm in ("adabn", "both", "cluster-contrast")} == {2} and len(runs["untrained"]) == 1
    assert runs["both"][0]["mAP"] != runs["both"][1]["mAP"]
    assert {run["config"]["optim"]["lr"] for run in runs["adabn"]} == {0.0}  # an arm's own settings come last
    assert {run["config"]["optim"]["lr"] for run in runs["both"]} == {0.01}
    for found in runs.values():
        for content in found:
            assert content["mAP"] == pytest.approx(sum(content["ap"]) / len(content["ap"]), abs=1e-5)
    (folder / "out" / "both-0.json").unlink()
    run(folder, "--seeds", "0")
    again, once = json.loads((folder / "out" / "both-0.json").read_text()), json.loads(first)
    assert (again["ap"], again["curve"]) == (once["ap"], once["curve"])  # the same draws
    capsys.readouterr()
    study.main(["table", "--out", str(folder / "out"), "--json", str(folder / "summary.json")])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| both | 2 | ") and ".." in line for line in lines) and len(lines) == 2 + 6 + 3
    both = next(row for row in json.loads((folder / "summary.json").read_text())["arms"] if row["arm"] == "both")
    assert [len(curve) for curve in both["curves"]] == [1, 1]
    mean = lambda arm: sum(100 * run["mAP"] for run in runs[arm]) / 2  # noqa: E731
    assert both["gain"] == pytest.approx(mean("both") - mean("adabn"), abs=0.02) and both["low"] <= both["high"]


def test_validation_looks_for_training_identities_alone(folder):
    target = f"{folder}/people/all.csv"
    study.main(["validation", "--target", target, "--ids", "4", "--to", f"{folder}/validation.json"])
    whole, made = load_dataset(target), load_dataset(f"{folder}/validation.json")
    known = np.unique(whole.train.pids)
    assert set(made.train.pids) == set(known[:-4]) and set(made.query.pids) == set(made.gallery.pids) == set(known[-4:])
    assert len(made.train) + len(made.query) + len(made.gallery) == len(whole.train)
    pairs = set(zip(made.query.pids.tolist(), made.query.camids.tolist(), strict=True))
    assert len(pairs) == len(made.query) == 4 * 3  # one image of each identity and camera
    files = lambda *records: {(r.root / path).name for r in records for path in r.paths}  # noqa: E731
    assert not files(made.train, made.query, made.gallery) & files(whole.query, whole.gallery)
    with pytest.raises(SystemExit, match="expected --ids from 1 to"):
        study.main(["validation", "--target", target, "--ids", str(len(known)), "--to", f"{folder}/none.json"])


def test_where_patches_are(folder):
    options = {"backbone": "osnet_x0_25", "dim": 16, "embedding": 8, "hidden": 8}
    net, source = create_model("paul", **options), folder / "source"
    with torch.no_grad():
        net.generator.fc2.bias[5] += 0.25  # the first patch, lower by an eighth of the map
    source.mkdir()
    save_weights(net, source / "weights.safetensors")
    (source / "card.json").write_text(json.dumps({"model": {"name": "paul", "options": options}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REIDFAST_CACHE", str(folder / "cache"))
        target = f"--target {folder}/people/all.csv --height 128 --width 64 --images 5 --json {folder}/patches.json"
        study.main(shlex.split(f"patches --source {source} {target}"))
    found = json.loads((folder / "patches.json").read_text())
    moved = np.array(found["mean"]) - np.array(found["start"])
    assert found["images"] == 5 and moved.shape == (6, 6) and np.count_nonzero(moved) == 1
    assert moved[0, 5] == pytest.approx(0.25, abs=1e-3) and np.max(found["spread"]) == 0


def test_rejects(folder):
    with pytest.raises(SystemExit, match="learned-both: expected --source"):
        run(folder, "--seeds", "0", arms="learned-both")
    with pytest.raises(SystemExit, match="expected arms among controls, adabn"):
        run(folder, arms="nothing")
    with pytest.raises(SystemExit, match="expected cached.{cameras, centred, .*got nothing"):
        run(folder, arms="'both cached.nothing=1'", out="wrong")
    run(folder, "--seeds", "0", arms="adabn")
    with pytest.raises(SystemExit, match="holds runs with other epochs"):
        run(folder, "--epochs", "2")


def test_watching_changes_nothing_and_arms_bring_settings(folder):
    arms = "both cluster-stripes 'both loss.k=2 cached.settle=true' 'cluster-stripes cached.labels=identities'"
    arms += " 'pedal loss.k=2' 'pedal loss.k=2 cached.labels=identities'"
    run(folder, "--seeds", "0", "--watch", arms=arms, out="watched")
    runs = {arm: found[0] for arm, found in Results(folder / "watched").read().items()}
    alone = folder / "out" / "both-0.json"
    if not alone.exists():
        run(folder, "--seeds", "0", arms="both")
    assert runs["both"]["ap"] == load_run(alone)["ap"]
    assert [row["epoch"] for row in runs["both"]["curve"]] == [0, 1]
    row = runs["both"]["curve"][1]
    assert {"loss/pedal", "loss/ipfl", "gradient", "gradient/cosine", "memory/near share", "rank", "train mAP"} <= set(
        row
    )
    assert row["gradient/pedal"] > 0 and -1 <= row["gradient/cosine"] <= 1
    changed = runs["both loss.k=2 cached.settle=true"]
    assert changed["config"]["loss"]["k"] == 2 and changed["ap"] != runs["both"]["ap"]
    found = runs["cluster-stripes cached.labels=identities"]["curve"][1]
    assert found["pairs/precision"] == found["pairs/recall"] == 1 and found["outliers"] == 0
    assert runs["cluster-stripes"]["curve"][1]["pairs/recall"] < 1
    told, not_told = runs["pedal loss.k=2 cached.labels=identities"], runs["pedal loss.k=2"]
    assert told["curve"][1]["loss/pedal"] > not_told["curve"][1]["loss/pedal"]  # the nearest attract more than others


def test_settled_batch_norms_come_back():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).eval()
    maps = 3 + 2 * torch.randn(128, 2, 4, 4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with settled(net, maps):
        out = net(maps)
        torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
        torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net[1].momentum == 0.1 and not net.training
    settle(net, maps)
    torch.testing.assert_close(net(maps), out)


def test_chosen_pedal():
    generator = torch.Generator().manual_seed(0)
    memory = MemoryBank(12, 8, parts=2, k=1)
    memory.bank.copy_(torch.randn(2, 12, 8, generator=generator))
    x = nn.functional.normalize(torch.randn(2, 3, 8, generator=generator), dim=2)
    rows, pids, pedal = torch.tensor([0, 5, 11]), np.repeat(np.arange(4), 3), PEDAL(2, 3.0)
    as_it_is = pedal(x, memory, rows)
    torch.testing.assert_close(ChosenPEDAL(pedal)(x, memory, rows), as_it_is)
    torch.testing.assert_close(ChosenPEDAL(pedal, np.zeros(12, np.int64))(x, memory, rows), as_it_is)
    distances = (x[:, :, None] - memory.bank[:, None]).square().sum(3)

    def loss(chosen):
        total = 0.0
        for b, row in enumerate(rows.tolist()):
            others = [j for j in range(12) if j != row]
            for attraction in (-3.0 * distances[:, b]).exp():
                total += float(attraction[others].sum().log() - attraction[chosen(b, row)].sum().log()) / 6
        return total

    own = lambda b, row: [j for j in range(12) if j // 3 == row // 3 and j != row]  # noqa: E731
    assert float(ChosenPEDAL(pedal, pids)(x, memory, rows)) == pytest.approx(loss(own), rel=1e-5)
    assert float(ChosenPEDAL(PEDAL(5, 3.0), pids)(x, memory, rows)) == pytest.approx(loss(own), rel=1e-5)  # all it has
    nearest = lambda b, row: [j for j in distances.sum(0)[b].argsort().tolist() if j != row][:2]  # noqa: E731
    cameras = np.arange(12) % 2
    across = lambda b, row: [j for j in nearest_of(b) if j % 2 != row % 2][:2]  # noqa: E731
    nearest_of = lambda b: distances.sum(0)[b].argsort().tolist()  # noqa: E731
    other = ChosenPEDAL(pedal, whole=True, cameras=cameras)
    assert float(other(x, memory, rows)) == pytest.approx(loss(across), rel=1e-5)
    centred = ChosenPEDAL(PEDAL(3, 3.0), whole=True, cameras=cameras, centred=True)
    moved = memory.bank.clone()
    memory.bank[:, 1::2] += 5.0  # one camera is far from the other; the images are of rows 0 (there), 5 and 11
    shifted = x + torch.tensor([0.0, 5.0, 5.0])[:, None]
    same_camera = ChosenPEDAL(PEDAL(3, 3.0), whole=True)
    means = torch.stack([moved[:, c::2].mean(1) for c in (0, 1)], 1)[:, cameras]  # [2, 12, 8]
    apart = ((x - means[:, rows])[:, :, None] - (moved - means)[:, None]).square().sum((0, 3))
    expected = 0.0
    logits = -3.0 * (shifted[:, :, None] - memory.bank[:, None]).square().sum(3)
    for b, row in enumerate(rows.tolist()):
        others = [j for j in range(12) if j != row]
        near = [j for j in apart[b].argsort().tolist() if j != row][:3]
        expected += float((logits[:, b, others].logsumexp(1) - logits[:, b, near].logsumexp(1)).sum() / 6)
    assert float(centred(shifted, memory, rows)) == pytest.approx(expected, rel=1e-4)
    assert float(same_camera(shifted, memory, rows)) != pytest.approx(expected, rel=1e-2)
    memory.bank.copy_(moved)
    assert float(ChosenPEDAL(pedal, whole=True)(x, memory, rows)) == pytest.approx(loss(nearest), rel=1e-5)
    assert float(ChosenPEDAL(pedal, whole=True)(x, memory, rows)) != pytest.approx(float(as_it_is), rel=1e-3)


def test_what_is_watched():
    pids, cameras = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 1, 1])
    labels = np.array([0, 0, 1, 1, 1, -1])
    found = describe_clusters(labels, pids, cameras)
    # pairs in a cluster: 0-1, 2-3, 2-4, 3-4; of one identity: 0-1, 3-4 of six; over cameras: 3-4 of four
    assert (found["clusters"], found["outliers"]) == (2, pytest.approx(1 / 6))
    assert found["pairs/precision"] == 0.5 and found["pairs/recall"] == pytest.approx(1 / 3)
    assert found["pairs/recall across cameras"] == 0.25
    x = torch.eye(4)[torch.tensor([0, 0, 0, 1, 1, 1])][None]
    found = describe(x, pids, cameras)
    assert found["share/identity"] == pytest.approx(1) and found["train mAP"] == 1
    assert found["mean cosine"] == pytest.approx(0.5) and found["rank"] == pytest.approx(1)
    assert found["across/identity"] == pytest.approx((1 + 1 + 2 + 2 + 1 + 1) / (6 * 5))
    assert describe(x, cameras, pids)["share/camera"] == pytest.approx(1)
    n = 40
    found = describe_memory(torch.eye(n)[None], 0.5 * torch.eye(n)[None], 3.0)
    assert found["memory/own cosine"] == 1 and found["memory/length"] == 0.5
    assert found["memory/near distance"] == found["memory/mean distance"] == pytest.approx(1.25)
    assert found["memory/effective rows"] == pytest.approx(n - 1, rel=1e-5)
    assert found["memory/near share"] == pytest.approx(10 / (n - 1))
