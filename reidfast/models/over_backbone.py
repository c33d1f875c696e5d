# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What baselines and methods share: a model over a backbone, which is named or handed in."""

from __future__ import annotations

import os
from typing import Any, ClassVar, TypeVar

from torch import nn

from reidfast.models.backbones import Adapter, Backbone
from reidfast.models.registry import create_model
from reidfast.models.weights import load_weights

__all__ = ["OverBackbone", "Weights", "make_backbone", "need_classes"]

Weights = str | os.PathLike[str] | None
M = TypeVar("M", bound="OverBackbone")


def make_backbone(
    backbone: str | nn.Module, weights: Weights = None, options: dict[str, Any] | None = None
) -> Backbone:
    """The backbone of that name with its weights and options; a module of another kind goes into an `Adapter`.

    Args:
        backbone: Name for `create_model`, a `Backbone`, or any module that `Adapter` takes.
        weights: Checkpoint to load; not for a `Backbone`, which has its weights.
        options: Options of the named backbone, or of the `Adapter`.
    """
    if isinstance(backbone, str):
        made = create_model(backbone, weights=weights, **(options or {}))
        if not isinstance(made, Backbone):
            raise ValueError(f"create_model: expected a backbone below a baseline or method, got {backbone!r}")
        return made
    if not isinstance(backbone, Backbone):
        if weights is not None:
            load_weights(backbone, weights)
        return Adapter(backbone, **(options or {}))
    if weights is not None or options:
        raise ValueError("create_model: expected backbone_weights and backbone_options beside the name of a backbone")
    return backbone


def need_classes(num_classes: int | None) -> int:
    """`num_classes`, or a ValueError where it is left out."""
    if num_classes is None or num_classes < 1:
        raise ValueError(f"create_model: expected num_classes, the number of training identities, got {num_classes}")
    return num_classes


class OverBackbone(nn.Module):
    """A model over a backbone.

    Attributes:
        backbone: The network below; its parameters train at the backbone's learning rate.
        feature_size: Size of the embedding.
        classifier_keys: See `register_model`.
    """

    backbone: Backbone
    feature_size: int
    classifier_keys: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def create(
        cls: type[M],
        *,
        backbone: str | nn.Module = "resnet50",
        backbone_weights: Weights = None,
        backbone_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> M:
        """The model over a backbone that is made from its name; `options` are the constructor's."""
        return cls(make_backbone(backbone, backbone_weights, backbone_options), **options)

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters that are not the backbone's."""
        inside = {id(p) for p in self.backbone.parameters()}
        return [p for p in self.parameters() if id(p) not in inside]
