# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""IDE, strong baseline, PCB: shapes, routing of the neck, what is trained."""

import pytest
import torch
from torch.nn.functional import normalize

from reidfast.models import create_model
from reidfast.models.baselines import IDE, PCB, StrongBaseline


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return create_model("osnet_x0_25")


def test_strong_baseline_embeds_after_the_neck(backbone):
    model = StrongBaseline(backbone, 7)
    images = torch.randn(4, 3, 128, 64)
    out = model(images)
    assert out.features.shape == (4, backbone.feature_size) and out.logits.shape == (4, 1, 7)
    assert not model.neck.bias.requires_grad and model.classifier.bias is None
    model.eval()
    embedding = model(images)
    torch.testing.assert_close(embedding, model.neck(model.backbone(images)))


def test_ide(backbone):
    model = IDE(backbone, 5, hidden=16)
    out = model(torch.randn(3, 3, 64, 32))
    assert out.features.shape == (3, 16) and out.logits.shape == (3, 1, 5)
    assert model.eval()(torch.randn(2, 3, 64, 32)).shape == (2, 16)


def test_pcb_embedding_is_unit_stripes(backbone):
    model = PCB(backbone, 5, parts=4)
    images = torch.randn(3, 3, 128, 64)
    out = model(images)
    assert out.logits.shape == (3, 4, 5)
    model.eval()
    embedding = model(images)
    cells = model.backbone.forward_map(images)
    rows = cells.shape[2] // 4
    for p in range(4):
        stripe = normalize(cells[:, :, p * rows : (p + 1) * rows].mean((2, 3)), dim=1)
        torch.testing.assert_close(embedding[:, p * cells.shape[1] : (p + 1) * cells.shape[1]], stripe)


def test_pcb_rejects_maps_with_too_few_rows(backbone):
    with pytest.raises(ValueError, match="PCB: expected a map of at least 6 rows, got"):
        PCB(backbone, 5)(torch.randn(2, 3, 64, 32))


@pytest.mark.parametrize("kind", [IDE, StrongBaseline, PCB])
def test_parameter_groups_cover_everything_once(backbone, kind):
    model = kind(backbone, 5)
    together = [*model.backbone.parameters(), *model.head_parameters()]
    assert len(together) == len({id(p) for p in together}) == len(list(model.parameters()))
