# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The experiment over PAUL's arms, on rendered people: resumable file by file, the table, what it refuses."""

import json
import shlex

import pytest
import torch

pytest.importorskip("lightning", reason="needs the extra [train]")
pytest.importorskip("jsonargparse", reason="needs the extra [train]")
pytest.importorskip("sklearn", reason="needs the extra [train]")

from benchmarks.experiments.paul import main, read
from reidfast.data import write_synthetic
from reidfast.models import create_model, save_weights

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


def run(folder, *more, arms=ARMS):
    start = f"run --weights {folder}/osnet.npz --out {folder}/out --target {folder}/people/all.csv --epochs 1"
    size = "--height 64 --width 32 --cached --set-cluster loss.k1=6 loss.k2=2"
    size += " --set loss.k=3 data.batch=20 optim.lr=0.01"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REIDFAST_CACHE", str(folder / "cache"))
        main(shlex.split(f"{start} --arms {arms} {size}") + list(more))


def test_arms_seeds_and_table(folder, capsys):
    run(folder, "--seeds", "0")
    first = (folder / "out" / "both-0.json").read_bytes()
    run(folder, "--seeds", "0", "1")
    assert (folder / "out" / "both-0.json").read_bytes() == first  # what is there is not run again
    runs = read(folder / "out")
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
    main(["table", "--out", str(folder / "out"), "--json", str(folder / "summary.json")])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| both | 2 | ") and ".." in line for line in lines) and len(lines) == 2 + 5 + 3
    both = next(row for row in json.loads((folder / "summary.json").read_text())["arms"] if row["arm"] == "both")
    mean = lambda arm: sum(100 * run["mAP"] for run in runs[arm]) / 2  # noqa: E731
    assert both["gain"] == pytest.approx(mean("both") - mean("adabn"), abs=0.02) and both["low"] <= both["high"]


def test_rejects(folder):
    with pytest.raises(SystemExit, match="learned-both: expected --source"):
        run(folder, "--seeds", "0", arms="learned-both")
    with pytest.raises(SystemExit, match="expected arms among controls, adabn"):
        run(folder, arms="nothing")
    run(folder, "--seeds", "0", arms="adabn")
    with pytest.raises(SystemExit, match="holds runs with other epochs"):
        run(folder, "--epochs", "2")
