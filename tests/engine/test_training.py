# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast train`: configuration, a run that learns, and a run that is killed and goes on as if nothing had
happened."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_settings import parse

pytest.importorskip("lightning", reason="needs the extra [train]")
pytest.importorskip("jsonargparse", reason="needs the extra [train]")

from reidfast.cli import main
from reidfast.engine.method import CONFIGS
from reidfast.engine.methods import METHODS, list_methods
from reidfast.models import read_weights

SMALL = [
    "--data.name=synthetic",
    "--data.options={ids: 12, cameras: 3, images: 2, height: 64, width: 32, seed: 1}",
    "--data.height=64",
    "--data.width=32",
    "--data.ids=3",
    "--data.images=2",
    "--model.backbone=osnet_x0_25",
    "--model.options={}",
    "--accelerator=cpu",
    "--evaluate_every=2",
]


@pytest.fixture(autouse=True)
def small_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("REIDFAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def command(out, epochs, *more):
    start = [sys.executable, "-m", "reidfast", "train", "strong_baseline", *SMALL]
    return [*start, f"--optim.epochs={epochs}", f"--out={out}", *more]


def run(out, epochs, *more):
    done = subprocess.run(command(out, epochs, *more), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def weights(out):
    return read_weights(out / "weights.safetensors")


def test_every_method_has_a_file_that_parses():
    assert set(list_methods()) == {path.stem for path in CONFIGS.glob("*.yaml")}
    for method in list_methods():
        parse(method)
    for method in ("ide", "pcb", "strong_baseline"):
        config = parse(method, ["--optim.lr", "0.5", "--data.name", "market751_mini"])
        assert config.optim.lr == 0.5 and config.data.name == "market751_mini" and config.data.ids == 16
    assert parse("pcb", []).data.height == 384 and parse("strong_baseline", []).model.options["stem_relu"] is False


def test_a_config_file_lies_between_the_method_and_the_options(tmp_path):
    (tmp_path / "mine.yaml").write_text("optim: {lr: 0.01, epochs: 7}\n")
    config = parse("ide", ["--config", str(tmp_path / "mine.yaml"), "--optim.epochs", "3"])
    assert (config.optim.lr, config.optim.epochs, config.optim.optimizer) == (0.01, 3, "sgd")


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["nothing"], "expected a method among"),
        (["ide", "--optim.rate", "1"], "optim.rate"),
        (["ide", "--optim.lr", "fast"], "fast"),
        (["ide", "--data.name", "no_such_set"], "no_such_set"),
    ],
)
def test_wrong_settings_are_one_line(arguments, words, capsys, tmp_path):
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1


def test_run_leaves_everything_and_is_not_overwritten(tmp_path):
    out = tmp_path / "run"
    run(out, 2)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["history"][-1]["epoch"] == 2 and 0 <= metrics["history"][-1]["mAP"] <= 1
    left = {"last.ckpt", "best.ckpt", "weights.safetensors", "card.json", "metrics.json", "logs"}
    assert left <= {p.name for p in out.iterdir()}
    rows = (out / "csv" / "start1" / "metrics.csv").read_text().splitlines()
    assert "loss/total" in rows[0] and "mAP" in rows[0] and len(rows) > 1
    again = subprocess.run(command(out, 2), capture_output=True, text=True)
    assert again.returncode == 2 and "holds a run already" in again.stderr


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run(straight, 4)
    process = subprocess.Popen(command(broken, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (broken / "last.ckpt").exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)  # in the middle of an epoch, or of writing
    process.wait()
    assert process.returncode == -signal.SIGKILL and not (broken / "weights.safetensors").exists()
    run(broken, 4, "--resume=true")
    a, b = weights(straight), weights(broken)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    first, second = (json.loads((d / "metrics.json").read_text()) for d in (straight, broken))
    assert first["history"] == second["history"] and first["before"] == second["before"]


@pytest.mark.parametrize("method", list_methods())
def test_every_option_says_what_it_is(method):
    for action in METHODS[method].parser()._actions:
        text, name = action.help or "", action.option_strings
        assert len(text.split()) > 1 and not text.startswith("Of "), f"{name}: {text}"
