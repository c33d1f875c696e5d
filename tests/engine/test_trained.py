# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Runs that are taken up again by their folder, checkpoint or weights, and nothing else."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch

from reidfast.cli import main
from reidfast.models import WeightsError, create_model, is_trained, load_trained, read_card, save_weights

DATA = ["--data=synthetic", "--quiet", "--json"] + [
    f"--data-option={option}" for option in ("ids=12", "cameras=3", "images=2", "height=64", "width=32", "seed=1")
]


def say(capsys, *arguments):
    status = main([str(a) for a in arguments])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return json.loads(printed.out)


def test_folder_checkpoint_and_weights_give_the_scores_of_training(small_run, capsys):
    wanted = json.loads((small_run / "metrics.json").read_text())["history"][-1]
    for name in (".", "last.ckpt", "best.ckpt", "weights.safetensors"):
        found = say(capsys, "evaluate", "--model", small_run / name, *DATA)
        assert found["R1"] == wanted["rank1"] and found["mAP"] == wanted["mAP"], name
        assert found["image_size"] == [64, 32] and found["filter"] == "bilinear"  # the card's


def test_extract_and_search_take_a_run(small_run, tmp_path, capsys):
    made = say(capsys, "extract", tmp_path / "f.npz", "--model", small_run / "best.ckpt", *DATA)
    assert made["size"] == 512 and made["meta"]["settings"]["size"] == [64, 32]
    flipped = say(capsys, "evaluate", "--model", small_run, "--flip", "--camera-mean", *DATA)
    assert flipped["flip"] and flipped["camera_mean"]
    other = say(capsys, "evaluate", "--model", small_run, "--size", "32x32", *DATA)
    assert other["image_size"] == [32, 32]  # what is said wins over the card


def test_card(small_run):
    card = read_card(small_run)
    assert card == read_card(small_run / "last.ckpt") == json.loads((small_run / "card.json").read_text())
    assert card["model"]["name"] == "strong_baseline" and card["size"] == [64, 32] and card["data"] == "synthetic"
    model, _, source = load_trained(small_run / "last.ckpt")
    assert not model.training and source.name == "last.ckpt" and len(model.classifier.weight) == 6


def test_backbone_weights_can_come_from_a_checkpoint(small_run):
    model = create_model("strong_baseline", backbone="osnet_x0_25", weights=small_run / "last.ckpt")
    images = torch.zeros(1, 3, 64, 32)
    assert torch.equal(model.eval()(images), load_trained(small_run).model(images))


def test_an_unfinished_run_is_its_last_checkpoint(small_run, tmp_path):
    shutil.copy(small_run / "last.ckpt", tmp_path)
    assert is_trained(tmp_path) and load_trained(tmp_path).source == tmp_path / "last.ckpt"


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_files_that_are_no_run(small_run, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="found neither"):
        load_trained(tmp_path)
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"card": Evil()}, protocol=2))
    torch.save({"card": Evil(), "state_dict": {}}, tmp_path / "worse.ckpt")
    torch.save({"state_dict": {"model.a": torch.zeros(1)}}, tmp_path / "foreign.ckpt")
    whole = (small_run / "last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    for name, words in (
        ("evil", "load_trained"),
        ("worse", "it is not opened, for safety"),
        ("foreign", "holds no card"),
        ("cut", "damaged or cut short"),
    ):
        with pytest.raises(WeightsError, match=words):
            load_trained(tmp_path / f"{name}.ckpt")
    assert "never" not in capsys.readouterr().out

    save_weights({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no card\.json beside"):
        load_trained(tmp_path / "weights.safetensors")
    for card, words in (
        ("{", "is not JSON"),
        ("[]", "expected an object"),
        ('{"model": {"head": "ide"}}', "does not say how to make its model"),
        ('{"model": {"name": "osnet"}}', "does not make a model: .* did you mean"),
        ('{"model": {"name": "color_stripes"}}', "does not fit|nothing in"),
    ):
        (tmp_path / "card.json").write_text(card)
        with pytest.raises(WeightsError, match=words):
            load_trained(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--model", "runs/none/last.ckpt"], "no such file"),
        (["--model", "RUN", "--weights", "a.npz"], "is a run, whose card says all"),
        (["--model", "RUN", "--model-option", "width=2"], "is a run, whose card says all"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, words, small_run, capsys):
    arguments = [str(small_run) if a == "RUN" else a for a in arguments]
    assert main(["evaluate", *arguments, *DATA]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1
