# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""QAN: sets in, embeddings out; who learns from which loss; and that quality is learnt without labels of quality."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reidfast.losses import SetTripletLoss
from reidfast.models import Backbone, create_model
from reidfast.models.qan import QAN

OFFSETS = torch.tensor([0, 3, 4, 9])


class Tiny(Backbone):
    """Two convolutions: small enough for gradcheck."""

    out_channels, feature_size, stride = 6, 6, 4

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, 4, 3, 2, 1)
        self.late = nn.Conv2d(4, 6, 3, 2, 1)

    def forward_map(self, images: Tensor) -> Tensor:
        return self.late(torch.tanh(self.early(images)))


def tiny(**options: object) -> QAN:
    torch.manual_seed(0)
    options = {"backbone": Tiny(), "split": "early", "size": (16, 8), "hidden": 4, "num_classes": 5, **options}
    model = create_model("qan", **options)
    assert isinstance(model, QAN)
    return model


def frames(n: int = 9) -> Tensor:
    return torch.randn(n, 3, 16, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pooling", ["quality", "mean", "max"])
@pytest.mark.parametrize("parts", [1, 3])
def test_sets_of_any_size(pooling: str, parts: int) -> None:
    model = tiny(pooling=pooling, parts=parts).eval()
    x = frames()
    ragged = model(x, OFFSETS)
    assert ragged.shape == (3, model.feature_size) == (3, 6 * parts)
    torch.testing.assert_close(ragged.norm(dim=1), torch.ones(3))
    for k, (a, b) in enumerate(((0, 3), (3, 4), (4, 9))):
        torch.testing.assert_close(model(x[None, a:b])[0], ragged[k])
        torch.testing.assert_close(model(x[a:b].flip(0)[None])[0], ragged[k])  # the order does not matter
        torch.testing.assert_close(model.embed_track(x[a:b].split(2)), ragged[k])
    torch.testing.assert_close(model(x[3:4])[0], ragged[1])  # an image is a set of one
    dense = model(x.unflatten(0, (3, 3)))
    torch.testing.assert_close(dense, model(x, torch.tensor([0, 3, 6, 9])))


def test_training_output() -> None:
    model = tiny(parts=3, dim=4)
    out = model(frames(), OFFSETS)
    assert out.sets.shape == (3, 12) and out.frames.shape == (9, 3, 4)
    assert out.scores.shape == (9, 3) and out.logits.shape == (9, 5)
    dense = model(frames().unflatten(0, (3, 3)))
    assert dense.sets.shape == (3, 12) and dense.logits.shape == (9, 5) and dense.scores.shape == (9, 3)
    assert tiny(num_classes=None)(frames(), OFFSETS).logits is None
    same = tiny(dim=6)
    torch.testing.assert_close(same.eval()(frames(), OFFSETS), tiny().eval()(frames(), OFFSETS))  # starts as identity


def test_part_rows() -> None:
    """7 rows are cut into 0-2, 3-4, 5-6."""
    maps = torch.arange(7.0).view(1, 1, 7, 1).expand(1, 6, 7, 2)
    assert tiny(parts=3).frame_features(maps)[0, :, 0].tolist() == [1.0, 3.5, 5.5]


def gradients(model: QAN, loss: Tensor) -> dict[str, float]:
    model.zero_grad()
    loss.backward()
    found = {"quality": 0.0, "early": 0.0, "late": 0.0}
    for name, p in model.named_parameters():
        key = next((k for k in found if k in name), None)
        if key and p.grad is not None:
            found[key] += float(p.grad.abs().sum())
    return found


def test_routing() -> None:
    """Q learns from set-level losses alone, the trunk from both, nothing is detached."""
    model = tiny()
    model.quality.score.weight.data.mul_(30)
    out = model(frames(), OFFSETS)
    image = functional.cross_entropy(out.logits, torch.arange(9) % 5)
    by_image = gradients(model, image)
    assert by_image["quality"] == 0 and by_image["early"] > 0 and by_image["late"] > 0
    triplet = SetTripletLoss(1.8)
    out = model(frames(), OFFSETS)
    by_set = gradients(model, triplet(out.sets[:1], out.sets[1:2], out.sets[2:]))
    assert all(v > 0 for v in by_set.values())

    def early(detach: bool) -> Tensor:
        other = tiny(detach_trunk=detach)
        other.quality.score.weight.data.mul_(30)
        sets = other(frames(), OFFSETS).sets
        triplet(sets[:1], sets[1:2], sets[2:]).backward()
        assert other.quality.score.weight.grad.abs().sum() > 0
        return other.backbone.early.weight.grad

    assert not torch.allclose(early(False), early(True))


def test_gradient_of_the_scores() -> None:
    """dL/dz_i = s_i (1 - s_i) <R_i - R_a, g> / Z, g = dL/dR_a before the normalisation."""
    model = tiny()
    g = torch.Generator().manual_seed(3)
    features = torch.randn(5, 6, generator=g, dtype=torch.float64)
    z = torch.randn(5, 1, generator=g, dtype=torch.float64, requires_grad=True)
    pooled = model.pool(features, z, torch.tensor([0, 5]))
    pooled.retain_grad()
    (pooled.pow(3).sum()).backward()
    s = z.detach().sigmoid()
    wanted = s * (1 - s) * ((features - pooled.detach()) @ pooled.grad[0])[:, None] / s.sum()
    torch.testing.assert_close(z.grad, wanted)


def test_gradcheck() -> None:
    model = tiny().double()
    model.quality.score.weight.data.mul_(50)
    model.eval()  # batch norm by its running statistics
    x, offsets = frames(3)[:, :, :8, :4].double().requires_grad_(), torch.tensor([0, 2, 3])
    assert torch.autograd.gradcheck(lambda x: model(x, offsets), (x,), atol=1e-6)


@pytest.mark.parametrize(
    "backbone,split", [("osnet_x0_25", "conv2"), ("resnet18", "layer2"), ("mobilenet_v2", "features.6")]
)
def test_over_backbones(backbone: str, split: str) -> None:
    model = create_model("qan", backbone=backbone, num_classes=3, hidden=8, size=(64, 32)).eval()
    maps, middle = model.trunk(torch.zeros(2, 3, 64, 32))
    assert model.split == split and middle.shape[2:] == (8, 4) and maps.shape[1] == model.backbone.out_channels
    assert model(torch.randn(4, 3, 64, 32), torch.tensor([0, 4])).shape == (1, model.feature_size)
    assert not model.backbone.get_submodule(split)._forward_hooks  # nothing is left behind


@pytest.mark.parametrize(
    "options", [{"split": "map"}, {"split": "image"}, {"unit": "flat"}, {"unit": "pool4"}, {"split": "late"}]
)
def test_unit_variants(options: dict) -> None:
    model = tiny(size=(56, 28), **options).eval()
    assert model(torch.randn(3, 3, 56, 28), torch.tensor([0, 3])).shape == (1, 6)


def test_weights_tell_the_classes(tmp_path) -> None:
    from reidfast.models import save_weights

    made = create_model("qan", backbone="osnet_x0_25", num_classes=7, hidden=8, size=(64, 32)).eval()
    save_weights(made, tmp_path / "qan.safetensors")
    again = create_model("qan", backbone="osnet_x0_25", hidden=8, size=(64, 32), weights=tmp_path / "qan.safetensors")
    x = torch.randn(3, 3, 64, 32)
    torch.testing.assert_close(again.eval()(x, torch.tensor([0, 3])), made(x, torch.tensor([0, 3])))


def test_explain() -> None:
    model = tiny().eval()
    quality, mu = model.explain(frames(), OFFSETS)
    assert quality.shape == mu.shape == (9, 1) and ((quality > 0) & (quality < 1)).all()
    torch.testing.assert_close(torch.stack([mu[a:b].sum() for a, b in ((0, 3), (3, 4), (4, 9))]), torch.ones(3))


def test_quality_is_learnt_from_identities_alone() -> None:
    """Frames of half the sets are noise; only triplets of sets are given. The scores find out which."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(5)
    people = torch.randn(8, 3, 16, 8, generator=g)

    def batch(n: int) -> tuple[Tensor, Tensor]:
        who = torch.randint(8, (n,), generator=g)
        other = (who + 1 + torch.randint(7, (n,), generator=g)) % 8
        ids = torch.stack([who, who, other], 1).flatten()
        bad = torch.rand(len(ids), 4, generator=g) < 0.5
        shown = people[ids][:, None] + 0.3 * torch.randn(len(ids), 4, 3, 16, 8, generator=g)
        noise = 1.5 * torch.randn(shown.shape, generator=g)
        return torch.where(bad[..., None, None, None], noise, shown), bad

    def auc() -> float:
        model.eval()
        x, bad = batch(60)
        z = model.explain(x.flatten(0, 1), torch.tensor([0, len(bad) * 4]))[0].view(-1)
        model.train()
        good, worse = z[~bad.view(-1)], z[bad.view(-1)]
        return float((good[:, None] > worse).float().mean())

    model = tiny(num_classes=None, hidden=8)
    before = auc()
    loss = SetTripletLoss(0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(80):
        x, _ = batch(16)
        sets = model(x).sets
        optimizer.zero_grad()
        loss(sets[0::3], sets[1::3], sets[2::3]).backward()
        optimizer.step()
    after = auc()
    assert after > 0.9 and after > before + 0.2, (before, after)


def test_rejects() -> None:
    with pytest.raises(ValueError, match=r"module of the backbone \(early, late\), got 'middle'"):
        tiny(split="middle")
    with pytest.raises(ValueError, match="pooling"):
        tiny(pooling="sum")
    with pytest.raises(ValueError, match=r"got \(3, 16, 8\)"):
        tiny()(frames()[0])
    with pytest.raises(ValueError, match="a map of at least 9 rows"):
        tiny(parts=9)(frames(), OFFSETS)
