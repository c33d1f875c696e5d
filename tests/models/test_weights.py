# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Weights: round trips in every format, strictness, files that are no checkpoints, unfolding of batch norms."""

from __future__ import annotations

import os
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

from reidfast.models import WeightsError, create_model, load_weights, read_weights, save_weights, unfold_batch_norms


def small(classes: int | None = None, channels: int = 4) -> nn.Sequential:
    model = nn.Sequential()
    model.conv = nn.Conv2d(3, channels, 3, bias=False)
    model.bn = nn.BatchNorm2d(channels)
    if classes is not None:
        model.classifier = nn.Linear(channels, classes)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt", ".pth"])
def test_round_trip(tmp_path, suffix):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="needs safetensors")
    source, target = small(), small()
    path = tmp_path / f"weights{suffix}"
    save_weights(source, path)
    result = load_weights(target, path)
    assert same(source, target) and len(result.loaded) == len(source.state_dict()) and not result.missing
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("nest", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "backbone."])
def test_training_checkpoints_and_wrappers(tmp_path, nest, prefix):
    source, target = small(), small()
    state = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save(state if nest is None else {"epoch": 3, nest: state}, tmp_path / "a.pth")
    load_weights(target, tmp_path / "a.pth")
    assert same(source, target)


def test_strict_names_every_kind_of_mismatch(tmp_path):
    state = small().state_dict()
    del state["bn.bias"]
    state["conv.weight"] = torch.zeros(5, 3, 3, 3)
    state["extra.weight"] = torch.zeros(1)
    save_weights(state, tmp_path / "a.npz")
    target = small()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(target, tmp_path / "a.npz")
    text = str(caught.value)
    assert "conv.weight (5, 3, 3, 3) for the model's (4, 3, 3, 3)" in text
    assert "missing: bn.bias" in text and "unexpected: extra.weight" in text and "\n" not in text
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())
    result = load_weights(target, tmp_path / "a.npz", strict=False)
    assert (
        result.missing == ["bn.bias"] and result.unexpected == ["extra.weight"] and result.mismatched == ["conv.weight"]
    )
    assert torch.equal(target.bn.weight, state["bn.weight"]) and torch.equal(target.conv.weight, before["conv.weight"])


def test_counters_may_be_absent(tmp_path):
    state = small().state_dict()
    del state["bn.num_batches_tracked"]
    save_weights(state, tmp_path / "a.npz")
    load_weights(small(), tmp_path / "a.npz")


def test_drop_classifier(tmp_path):
    save_weights(small(classes=10), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=re.escape("classifier.weight (10, 4) for the model's (7, 4)")):
        load_weights(small(classes=7), tmp_path / "a.pt")
    target = small(classes=7)
    kept = target.classifier.weight.clone()
    load_weights(target, tmp_path / "a.pt", drop_classifier=True)
    assert torch.equal(target.classifier.weight, kept)
    load_weights(small(), tmp_path / "a.pt", drop_classifier=True)
    load_weights(small(), tmp_path / "a.pt", drop=("classifier.",))


def test_resnet_drops_imagenets_fc_and_osnet_keeps_its_own(tmp_path):
    state = create_model("resnet18").state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "resnet18.pth")
    create_model("resnet18", weights=tmp_path / "resnet18.pth")
    with pytest.raises(WeightsError, match=r"unexpected: fc\.weight, fc\.bias"):
        load_weights(create_model("resnet18"), tmp_path / "resnet18.pth")
    source = create_model("osnet_x0_25")
    nn.init.constant_(source.fc[0].bias, 3.0)
    torch.save(source.state_dict() | {"classifier.weight": torch.zeros(5, 512)}, tmp_path / "osnet.pth")
    assert (create_model("osnet_x0_25", weights=tmp_path / "osnet.pth").fc[0].bias == 3).all()


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def write_evil_pickle(path):
    path.write_bytes(pickle.dumps({"conv.weight": Evil()}))


def write_object_pt(path):
    torch.save({"model": Evil()}, path)


def write_cut(path):
    save_weights(small(channels=64), path)
    path.write_bytes(path.read_bytes()[:1500])


def write_object_npz(path):
    np.savez(path, a=np.array([{"x": 1}], dtype=object))


BROKEN = [
    ("text.pt", lambda p: p.write_text("hello\n"), "not a"),
    ("empty.pth", lambda p: p.write_bytes(b""), "not a"),
    ("cut.pt", write_cut, "damaged or cut short"),
    ("cut.npz", write_cut, "damaged or cut short"),
    ("cut.safetensors", write_cut, "damaged or cut short"),
    ("text.npz", lambda p: p.write_text("hello\n"), "not a .npz checkpoint"),
    ("empty.npz", lambda p: p.write_bytes(b""), "not a .npz checkpoint"),
    ("object.npz", write_object_npz, "not a .npz checkpoint"),
    ("text.safetensors", lambda p: p.write_text("hello hello hello\n"), "not a .safetensors checkpoint"),
    ("pickle.pt", write_evil_pickle, "not a"),
    ("object.pt", write_object_pt, "only tensors are read, for safety"),
    ("numbers.pt", lambda p: torch.save({"epoch": 3}, p), "holds no tensors, only epoch"),
    ("list.pt", lambda p: torch.save([torch.zeros(2)], p), "expected named tensors in .* got list"),
    ("picture.jpg", lambda p: p.write_bytes(b"\xff\xd8"), "expected a file ending in"),
    ("other.npz", lambda p: np.savez(p, features=np.zeros((2, 3))), "does not fit Sequential: missing: conv.weight"),
]


@pytest.mark.parametrize("name,write,words", BROKEN, ids=[row[0] for row in BROKEN])
def test_files_that_are_no_checkpoints(tmp_path, monkeypatch, name, write, words):
    monkeypatch.chdir(tmp_path)
    if name.endswith(".safetensors"):
        pytest.importorskip("safetensors", reason="needs safetensors")
    write(tmp_path / name)
    with pytest.raises(WeightsError, match=words) as caught:
        load_weights(small(), tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_nan_in_weights(tmp_path):
    state = small().state_dict()
    state["bn.weight"][1] = float("nan")
    save_weights(state, tmp_path / "a.npz")
    with pytest.raises(WeightsError, match=r"NaN or infinity in bn\.weight"):
        load_weights(small(), tmp_path / "a.npz")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_weights(tmp_path / "a.pt")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_weights(tmp_path)
    with pytest.raises(WeightsError, match="ending in"):
        save_weights(small(), tmp_path / "a.onnx")


def test_nothing_fits_even_when_not_strict(tmp_path):
    save_weights({"a": torch.zeros(1)}, tmp_path / "a.npz")
    with pytest.raises(WeightsError, match="nothing in .* fits Sequential; it holds a"):
        load_weights(small(), tmp_path / "a.npz", strict=False)


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    source = small()
    save_weights(source, path)
    monkeypatch.setattr(torch, "save", lambda state, stream: (stream.write(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        save_weights(small(), path)
    target = small()
    load_weights(target, path)
    assert same(source, target) and [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]


def folded_osnet() -> nn.Module:
    """OSNet with batch norms written as a folding exporter leaves them, except the one behind the linear layer."""
    torch.manual_seed(0)
    model = create_model("osnet_x0_25")
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.bias, 0, 0.2)
            if name == "fc.1":
                nn.init.uniform_(module.running_var, 0.5, 1.5)
            else:
                module.running_var.fill_(1 - module.eps)
        elif isinstance(module, nn.Conv2d):
            module.weight.data.mul_(0.7)
    return model


def test_unfold_keeps_evaluation_and_mends_training():
    model = folded_osnet()
    images = torch.randn(96, 3, 64, 32)
    probe = torch.randn(32, 3, 64, 32)
    with torch.no_grad():
        before = model.eval().forward_map(probe)
        broken = model.train().forward_map(probe)
    model = folded_osnet()  # the training pass above moved the statistics
    model.train()
    names = unfold_batch_norms(model, images, batch=40)
    assert model.training and len(names) == 79 and "fc.1" not in names
    with torch.no_grad():
        after = model.eval().forward_map(probe)
        trained = model.train().forward_map(probe)
    scale = before.abs().max()
    assert (after - before).abs().max() <= 1e-5 * scale
    norm = model.conv2[0].conv1.bn
    assert (norm.running_var > 0).all() and not torch.equal(norm.weight, torch.ones_like(norm.weight))
    error, error_before = (trained - before).square().mean().sqrt(), (broken - before).square().mean().sqrt()
    spread = before.square().mean().sqrt()
    assert error < 0.1 * spread and error < 0.1 * error_before
    assert unfold_batch_norms(model, images[:8]) == []  # nothing is folded any more


def test_unfold_statistics_do_not_depend_on_batches():
    whole, parts = folded_osnet(), folded_osnet()
    images = torch.randn(20, 3, 64, 32)
    unfold_batch_norms(whole, images, batch=20)
    unfold_batch_norms(parts, images.split((7, 1, 12)))
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    expected = whole.conv1.conv(images)
    assert torch.allclose(whole.conv1.bn.running_mean, expected.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(whole.conv1.bn.running_var, expected.var((0, 2, 3), correction=0), rtol=1e-4)


def test_unfold_needs_images():
    with pytest.raises(ValueError, match="at least one image"):
        unfold_batch_norms(folded_osnet(), [])
