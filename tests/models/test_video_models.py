# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""DRSTA and RRU + STIM as models, and Inception-v3 below them."""

import pytest
import torch
from torch import Tensor, nn

from reidfast.losses import DiversityLoss, RRUSTIMLoss
from reidfast.models import Backbone, create_model, feature_grid, load_weights, save_weights
from reidfast.models.backbones.inception_v3 import InceptionAux
from reidfast.models.drsta import DRSTA
from reidfast.models.rru_stim import RRUSTIM


class Tiny(Backbone):
    """Two strided convolutions: 16 x 8 pixels become a 4 x 2 map of 6 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = self.feature_size = 6
        self.stride = 4
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.Tanh(), nn.Conv2d(5, 6, 3, 2, 1))

    def forward_map(self, images: Tensor) -> Tensor:
        return self.layers(images)


def clips(*shape, dtype=torch.float32):
    return torch.randn(*shape, 3, 16, 8, dtype=dtype)


# --- Inception-v3

TORCHVISION_KEYS = (
    "Conv2d_1a_3x3.conv.weight",
    "Mixed_5b.branch3x3dbl_3.bn.running_var",
    "Mixed_5d.branch_pool.conv.weight",
    "Mixed_6a.branch3x3.conv.weight",
    "Mixed_6e.branch7x7dbl_5.bn.bias",
    "Mixed_7a.branch7x7x3_4.conv.weight",
    "Mixed_7c.branch3x3dbl_3b.bn.weight",
)


def test_inception_has_torchvisions_keys_sizes_and_maps(tmp_path):
    model = create_model("inception_v3").eval()
    assert sum(p.numel() for p in model.parameters()) == 27_161_264 - 3_326_696 - 2_049_000  # less AuxLogits and fc
    assert sum(p.numel() for p in InceptionAux(1000).parameters()) == 3_326_696
    state = model.state_dict()
    assert set(TORCHVISION_KEYS) <= state.keys() and len(state) == 94 * 6
    with torch.no_grad():
        assert feature_grid(model, 299, 299) == (8, 8) and feature_grid(model, 256, 128) == (6, 2)
        above, below = model.forward_maps(torch.zeros(1, 3, 299, 299))
    assert above.shape == (1, 2048, 8, 8) and below.shape == (1, 768, 17, 17)
    public = state | {"fc.weight": torch.zeros(1000, 2048), "AuxLogits.fc.bias": torch.zeros(1000)}
    save_weights(public, tmp_path / "inception.pth")
    loaded = load_weights(model, tmp_path / "inception.pth", drop_classifier=True)
    assert len(loaded.loaded) == len(state) and not loaded.unexpected
    with pytest.raises(ValueError, match="makes no map of images of 32 x 32"):
        feature_grid(model, 32, 32)


def test_inception_sees_pixels_as_its_weights_want_them():
    model = create_model("inception_v3")
    seen = []
    model.Conv2d_1a_3x3.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pixels = torch.rand(1, 3, 75, 75)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        model.eval().forward_map((pixels - mean) / std)
    torch.testing.assert_close(seen[0], (pixels - 0.5) / 0.5, atol=1e-6, rtol=1e-6)


# --- DRSTA


def drsta(**options):
    return DRSTA(Tiny(), maps=3, dim=4, hidden=5, **options)


@pytest.mark.parametrize("spatial", ["shared", "independent", "average"])
@pytest.mark.parametrize("time", ["attention", "average", "max", "lstm", "gru"])
def test_drsta_every_arm_trains_and_embeds(spatial, time):
    model = drsta(spatial=spatial, time=time)
    x = clips(4, 6)
    out = model(x)
    assert out.embedding.shape == (4, 4)
    torch.testing.assert_close(out.embedding.norm(dim=1), torch.ones(4))
    loss = out.embedding[:, 0].sum()
    if spatial != "average":
        assert out.overlap.shape == (24,) and out.attention.shape == (24, 3, 8)
        loss = loss + DiversityLoss()(out.overlap)
    loss.backward()
    missing = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is None}
    assert missing == {"frame"}  # the layer of the first stage
    model.eval()
    with torch.no_grad():
        whole = model(x)
        torch.testing.assert_close(model.embed_track(x[1], chunk=4), whole[1], atol=1e-6, rtol=1e-5)
        assert model(x[:, 0]).shape == (4, 4)
        for stage in ("backbone", "spatial", "joint"):  # tracklets of any lengths at once
            model.set_stage(stage)
            (kept,) = model.encode_frames(x.flatten(0, 1))
            found = model.pool_frames(kept, torch.tensor([0, 6, 8, 24]))
            for row, frames in enumerate(x.flatten(0, 1).split([6, 2, 16])):
                torch.testing.assert_close(found[row], model(frames.unsqueeze(0))[0], atol=1e-6, rtol=1e-5)


def test_drsta_gradcheck():
    model = drsta().double()
    nn.init.normal_(model.time.weight)
    maps = torch.randn(2, 3, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: model.forward_maps(m)[::2], (maps,))


def test_drsta_formula():
    model = drsta(final=False).double().eval()
    nn.init.normal_(model.time.weight)
    maps = torch.randn(2, 5, 6, 4, 2, dtype=torch.float64)
    seen = model.explain(maps)
    want = []
    for k in range(3):
        pooled = torch.einsum("bnhw,bnchw->bnc", seen.attention[:, :, k], maps)
        x = nn.functional.normalize(model.enhance(pooled), dim=-1)
        t = (x @ model.time.weight[k]).softmax(1)
        torch.testing.assert_close(seen.weights[:, :, k], t)
        want.append((t[..., None] * x).sum(1))
    torch.testing.assert_close(model.embed_maps(maps), nn.functional.normalize(torch.cat(want, 1), dim=1))


def test_drsta_stages():
    model = drsta()

    def learning():
        return {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}

    model.set_stage("backbone")
    assert learning() == {"backbone", "frame"} and model.backbone.training
    assert model(clips(2, 3)).embedding.shape == (6, 4)
    model.set_stage("spatial")
    assert learning() == {"attend", "enhance", "final"} and not model.backbone.training
    nn.init.normal_(model.time.weight)
    x = clips(2, 3)
    first = model(x).embedding
    model.eval()
    model.train()
    assert not model.backbone.training and model.attend.training
    model.set_stage("joint")
    assert learning() == {"attend", "enhance", "final", "time"}
    assert not torch.allclose(model(x).embedding, first)  # the temporal attention counts now
    model.set_stage("joint", freeze_backbone=False)
    assert learning() == {"attend", "enhance", "final", "time", "backbone"} and model.backbone.training
    with pytest.raises(ValueError, match="stage to be one of"):
        model.set_stage("first")


def test_drsta_by_name():
    model = create_model("drsta", backbone="osnet_x0_25", maps=2).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 2, 3, 64, 32)).shape == (1, 128)
    assert create_model("drsta").backbone.stride == 32  # the published ResNet-50: 256 x 128 becomes 8 x 4


# --- RRU + STIM


def rru_stim(**options):
    return RRUSTIM(Tiny(), (4, 2), 7, dim=5, hidden=8, **options)


@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("time", ["stim", "average", "max", "lstm", "gru"])
def test_rru_stim_every_arm_trains_and_embeds(refine, time):
    model = rru_stim(refine=refine, time=time)
    x, labels = clips(4, 3), torch.tensor([0, 0, 3, 3])
    out = model(x)
    assert out.logits.shape == (4, 7) and out.parts.shape == (4, 6, 4) and out.auxiliary is None
    RRUSTIMLoss()(*out, labels).total.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    model.eval()
    with torch.no_grad():
        whole = model(x)
        assert whole.shape == (4, model.feature_size)
        for chunk in (1, 2, 3):
            torch.testing.assert_close(model.embed_track(x[1], chunk=chunk), whole[1], atol=1e-5, rtol=1e-5)
        assert model(x[:, 0]).shape == whole.shape


def test_rru_stim_gradcheck():
    model = rru_stim(dropout=0.0, rru={"hidden": 4, "spatial_hidden": 3}).double()
    labels = torch.tensor([0, 0, 3])
    maps = torch.randn(3, 2, 6, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: RRUSTIMLoss()(*model.forward_maps(m), labels).total, (maps,))


def test_rru_stim_order_of_frames_counts_only_with_the_recursion_or_stim():
    x = clips(2, 6)
    for refine, time, counts in ((True, "stim", True), (True, "average", True), (False, "average", False)):
        model = rru_stim(refine=refine, time=time).eval()
        with torch.no_grad():
            assert torch.allclose(model(x), model(x.flip(1)), atol=1e-5) is not counts


def test_rru_stim_parts_are_rows_of_the_refined_maps():
    model = rru_stim()
    x = clips(4, 3)
    refined = model.refine(model.maps(x))
    torch.testing.assert_close(model(x).parts[1, :, 2], refined[1, :, :, 2].mean((0, 2)))
    assert rru_stim(parts=2)(x).parts.shape == (4, 6, 2)


def test_rru_stim_by_name_and_from_weights(tmp_path):
    model = create_model("rru_stim", backbone="osnet_x0_25", num_classes=9, size=(64, 32), dim=16)
    assert model.grid == (4, 2) and model.aux is None
    save_weights(model, tmp_path / "weights.npz")
    again = create_model("rru_stim", backbone="osnet_x0_25", size=(64, 32), dim=16, weights=tmp_path / "weights.npz")
    assert again.classifier[-1].out_features == 9
    with pytest.raises(ValueError, match="auxiliary classifier belongs to inception_v3, got Tiny"):
        rru_stim(auxiliary=True)
    with pytest.raises(ValueError, match="expected num_classes"):
        create_model("rru_stim", backbone="osnet_x0_25", size=(64, 32))
    with pytest.raises(ValueError, match=r"expected clips \(B, T, 3, H, W\)"):
        model(torch.zeros(2, 3))


@pytest.mark.slow
def test_rru_stim_as_published():
    model = create_model("rru_stim", num_classes=11)
    assert model.grid == (8, 8)
    x = torch.randn(2, 2, 3, 299, 299)
    out = model(x)
    assert out.auxiliary.shape == (2, 11) and out.parts.shape == (2, 2048, 8) and out.video.shape == (2, 256)
    RRUSTIMLoss()(*out, torch.tensor([0, 1])).total.backward()
    with torch.no_grad():
        assert model.eval()(x).shape == (2, 256)
