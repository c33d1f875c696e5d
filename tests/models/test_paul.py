# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""PatchNet and the cluster-contrast network: branches, embeddings, what OSNet lends them, gradients."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from reidfast.models import Backbone, create_model
from reidfast.models.cluster_contrast import ClusterContrast
from reidfast.models.paul import PatchBranches, PatchNet


class Tiny(Backbone):
    out_channels = feature_size = 5
    stride = 2

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, 2, 1)

    def forward_map(self, images):
        return torch.tanh(self.conv(images))


def test_branches_are_a_linear_layer_and_a_norm_each():
    branches = PatchBranches(3, 5, 4).train()
    patches = torch.randn(7, 3, 5)
    nn.init.normal_(branches.bias)
    nn.init.normal_(branches.norm.weight)
    out = branches(patches)
    for part in range(3):
        single = nn.BatchNorm1d(4).train()
        with torch.no_grad():
            single.weight.copy_(branches.norm.weight.view(3, 4)[part])
        want = single(nn.functional.linear(patches[:, part], branches.weight[part], branches.bias[part]))
        torch.testing.assert_close(out[part], want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(branches.norm.running_var.view(3, 4)[part], single.running_var)


def test_parameter_count_as_published():
    with torch.device("meta"):
        net = PatchNet(create_model("resnet50"))
    assert sum(p.numel() for p in net.generator.parameters()) == 77_625_892  # as the authors' network
    assert sum(p.numel() for p in net.branches.parameters()) == 6 * (2048 * 256 + 256 + 2 * 256)
    assert net.feature_size == 1536


def test_shapes_and_modes():
    net = PatchNet(Tiny(), parts=4, dim=6, num_classes=9, embedding=3).train()
    images = torch.randn(5, 3, 16, 12)
    out = net(images)
    assert out.features.shape == (4, 5, 6) and out.logits.shape == (4, 5, 9) and out.embeddings.shape == (5, 12)
    assert bool((out.features >= 0).all())  # the pre-training has a ReLU
    part = 2
    want = nn.functional.linear(out.features[part], net.embed_weight[part], net.embed_bias[part])
    torch.testing.assert_close(out.embeddings[:, 3 * part : 3 * part + 3], want)
    adapted = PatchNet(Tiny(), parts=4, dim=6, embedding=3).train()
    out = adapted(images)
    assert out.logits is None and out.embeddings is None
    torch.testing.assert_close(out.features.norm(dim=2), torch.ones(4, 5))
    adapted.eval()
    embedding = adapted(images)
    assert embedding.shape == (5, 24)
    torch.testing.assert_close(embedding[:, 6:12], normalize(adapted.patch_features(images)[1], dim=1))
    torch.testing.assert_close(embedding.norm(dim=1), torch.full((5,), 2.0))
    assert adapted.transforms(images).shape == (5, 4, 2, 3)


def test_projection_is_cosines_and_frozen():
    net = PatchNet(Tiny(), parts=2, dim=4, embedding=3)
    x = normalize(torch.randn(2, 5, 4), dim=2).requires_grad_()
    e = net.project(x)
    want = torch.cosine_similarity(x[1, 3][None], net.embed_weight[1], dim=1)
    torch.testing.assert_close(e[3, 3:], want)
    e.sum().backward()
    assert net.embed_weight.grad is None and x.grad is not None
    with pytest.raises(ValueError, match="expected a network with embedding layers"):
        PatchNet(Tiny()).project(x)


def test_branches_take_over_osnets_layer():
    torch.manual_seed(0)
    osnet = create_model("osnet_x0_25").eval()
    images = torch.randn(3, 3, 64, 32)
    nn.init.uniform_(osnet.fc[1].running_mean)
    before = osnet.fc[1](osnet.fc[0](osnet.forward_map(images).mean((2, 3))))
    net = PatchNet(osnet, parts=1, dim=512, patches="stripes", branches="backbone").eval()
    torch.testing.assert_close(net(images), normalize(before, dim=1), rtol=1e-4, atol=1e-5)
    assert net.backbone.fc is None and not any(key.startswith("backbone.fc") for key in net.state_dict())
    with pytest.raises(
        ValueError, match=r"expected a linear layer of shape \(100, 128\), got \(512, 128\); set dim=512"
    ):
        PatchNet(create_model("osnet_x0_25"), dim=100, branches="backbone")
    with pytest.raises(ValueError, match="got Tiny; use branches='new'"):
        PatchNet(Tiny(), branches="backbone")


def test_gradients():
    torch.manual_seed(1)
    net = PatchNet(Tiny(), parts=2, dim=3, hidden=4).double().eval()
    nn.init.normal_(net.generator.fc2.weight, std=0.3)
    nn.init.uniform_(net.branches.norm.running_var, 0.5, 2)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda w: torch.func.functional_call(net, {"branches.weight": w}, images),
        net.branches.weight.detach().clone().requires_grad_(),
    )
    assert torch.autograd.gradcheck(
        lambda b: torch.func.functional_call(net, {"generator.fc2.bias": b}, images),
        (net.generator.fc2.bias.detach() * 0.9 + 0.01).requires_grad_(),
    )


def test_frozen_generator_still_passes_gradients_to_the_backbone():
    net = PatchNet(Tiny(), parts=2, dim=3)
    nn.init.normal_(net.generator.fc2.weight, std=0.3)
    net.generator.requires_grad_(False)
    net.train()(torch.randn(4, 3, 12, 12)).features[0].sum().backward()
    assert net.backbone.conv.weight.grad is not None and net.generator.fc2.weight.grad is None


@pytest.mark.parametrize("patches", ["learned", "stripes", "random"])
def test_create_model_and_checkpoint(patches):
    make = lambda: create_model("paul", backbone="osnet_x0_25", dim=16, patches=patches)  # noqa: E731
    first, second, images = make().eval(), make().eval(), torch.randn(2, 3, 128, 64)
    assert not torch.equal(first(images), second(images))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images), second(images))
    inside = {id(p) for p in first.head_parameters()}
    assert inside == {id(p) for p in first.branches.parameters()}


@pytest.mark.parametrize(
    "options,words",
    [
        ({"patches": "round"}, "patches learned, stripes or random"),
        ({"branches": "old"}, "branches new or backbone"),
        ({"num_classes": 0}, "num_classes of at least 1"),
    ],
)
def test_rejects(options, words):
    with pytest.raises(ValueError, match=words):
        PatchNet(Tiny(), **options)


def test_cluster_contrast_network():
    images = torch.randn(4, 3, 16, 12)
    net = ClusterContrast(Tiny())
    out = net(images)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(4))
    assert not net.neck.bias.requires_grad and len(net.head_parameters()) == 2
    osnet = create_model("osnet_x0_25").eval()
    crops = torch.randn(2, 3, 64, 32)
    want = normalize(osnet.fc[1](osnet.fc[0](osnet.forward_map(crops).mean((2, 3)))), dim=1)
    torch.testing.assert_close(ClusterContrast(osnet, neck="backbone").eval()(crops), want)
    with pytest.raises(ValueError, match="got Tiny; use neck='new'"):
        ClusterContrast(Tiny(), neck="backbone")
    assert create_model("cluster_contrast", backbone="osnet_x0_25").feature_size == 512


def test_cluster_contrast_on_stripes_is_patch_net_at_unit_length():
    torch.manual_seed(1)
    nets = [create_model("osnet_x0_25") for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    patch_net = PatchNet(nets[0], dim=512, patches="stripes", branches="backbone")
    net = ClusterContrast(nets[1], neck="stripes")
    crops = torch.randn(4, 3, 96, 32)
    torch.testing.assert_close(net.eval()(crops), patch_net.eval()(crops) / 6**0.5)
    features = patch_net.train()(crops).features
    torch.testing.assert_close(net.train()(crops), features.transpose(0, 1).flatten(1) / 6**0.5)
    assert net.feature_size == 3072 and len(net.head_parameters()) == 4
    inside = {id(p) for p in [*net.backbone.parameters(), *net.head_parameters()]}
    assert inside == {id(p) for p in net.parameters()}  # all of it is trained
    with pytest.raises(ValueError, match="fully connected layer for neck='stripes', got Tiny"):
        ClusterContrast(Tiny(), neck="stripes")


@pytest.mark.parametrize("backbone,options", [("mobilenet_v2", {"width": 0.35, "last_stride": 1}), ("resnet18", {})])
def test_other_backbones(backbone, options):
    net = create_model("paul", backbone=backbone, backbone_options=options, dim=8, hidden=16).eval()
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 48)
    assert len(net.head_parameters()) == 4


def test_autocast_and_gradients():
    net = PatchNet(Tiny(), parts=2, dim=4, embedding=3).train()
    with torch.autocast("cpu", torch.bfloat16):
        features = net(torch.randn(6, 3, 12, 12)).features
        e = net.project(features)
    (features.float().sum() + e.float().sum()).backward()
    assert bool(features.isfinite().all()) and bool(net.backbone.conv.weight.grad.isfinite().all())
