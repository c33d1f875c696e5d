# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Models by name, and their weights.

model = create_model("osnet_x0_25", weights="osnet_x0_25_msmt17.npz").eval()
features = model(images)              # [B, 512]
cells = model.forward_map(images)     # [B, 128, 16, 8] of 256 x 128 pixels
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from .backbones import (
    OSNET_CHANNELS,
    RESNET_LAYERS,
    Adapter,
    Backbone,
    ColorStripes,
    InceptionV3,
    MobileNetV2,
    OSNet,
    ResNet,
    timm_backbone,
)
from .baselines import IDE, PCB, Baseline, StrongBaseline
from .casn import CASN
from .cluster_contrast import ClusterContrast
from .drsta import DRSTA, drsta
from .npsm import NPSM, RegionEmbedder
from .paul import PatchNet
from .qan import QAN, qan
from .rru_stim import RRUSTIM, rru_stim
from .trained import Trained, is_trained, load_trained, read_card
from .video import VideoModel, feature_grid
from .weights import Loaded, WeightsError, load_weights, read_weights, save_weights, unfold_batch_norms

__all__ = [
    "CASN",
    "DRSTA",
    "IDE",
    "NPSM",
    "PCB",
    "QAN",
    "RRUSTIM",
    "Adapter",
    "Backbone",
    "Baseline",
    "ClusterContrast",
    "ColorStripes",
    "InceptionV3",
    "Loaded",
    "MobileNetV2",
    "OSNet",
    "PatchNet",
    "RegionEmbedder",
    "ResNet",
    "StrongBaseline",
    "Trained",
    "VideoModel",
    "WeightsError",
    "create_model",
    "feature_grid",
    "is_trained",
    "list_models",
    "load_trained",
    "load_weights",
    "read_card",
    "read_weights",
    "register_model",
    "save_weights",
    "unfold_batch_norms",
]

_MODELS: dict[str, Callable[..., nn.Module]] = {}


def register_model(name: str, factory: Callable[..., nn.Module] | None = None) -> Any:
    """Make `create_model(name, **options)` call `factory(**options)`; without a factory, a decorator.

    Raises:
        ValueError: The name is taken.
    """
    if factory is None:
        return partial(register_model, name)
    if name in _MODELS:
        raise ValueError(f"register_model: {name!r} is registered already")
    _MODELS[name] = factory
    return factory


def list_models() -> list[str]:
    """The names that `create_model` knows, sorted."""
    return sorted(_MODELS)


def create_model(
    name: str, *, weights: str | os.PathLike[str] | None = None, strict: bool = True, **options: Any
) -> nn.Module:
    """A model by its name, in training mode as modules are born.

    Args:
        name: One of `list_models()`, or `timm:NAME` for a network of timm, where that is installed.
        weights: A checkpoint (`load_weights`); a classifier in it is left out where the model has none. None: random
            parameters.
        strict: See `load_weights`.
        options: Keyword arguments of the model's class, for example `last_stride=1`. The baselines (`ide`,
            `strong_baseline`, `pcb`) and `casn` take `backbone` (a name, default resnet50, or any module that returns a
            map, tokens or a vector: see `Adapter`, whose options then go into `backbone_options`), `backbone_weights`,
            `backbone_options` and `num_classes`, which `weights` tells where it is left out. `npsm` and `two_stage`
            take a chain of modules as backbone (ResNet, OSNet, MobileNetV2), and `num_classes` may be None.

    Raises:
        ValueError: Unknown name, or an option the model does not have.
        WeightsError: The checkpoint is none, or does not fit.
    """
    factory = partial(timm_backbone, name[5:]) if name.startswith("timm:") else _MODELS.get(name)
    if factory is None:
        close = difflib.get_close_matches(name, _MODELS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(list_models())}"
        raise ValueError(f"create_model: expected the name of a model, got {name!r}; {hint}")
    if weights is not None and name in (*_BASELINES, "qan", "rru_stim") and "num_classes" not in options:
        options["num_classes"] = _classes_in(weights)
    try:
        model = factory(**options)
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise ValueError(f"create_model: {name} does not take these options: {error}") from error
    if weights is not None:
        load_weights(model, weights, strict, drop_classifier=isinstance(model, Backbone))
    return model


def _over_backbone(
    kind: Callable[..., nn.Module],
    *,
    backbone: str | nn.Module = "resnet50",
    backbone_weights: str | os.PathLike[str] | None = None,
    backbone_options: dict[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """`kind(backbone, **options)` with the backbone made from its name."""
    if isinstance(backbone, str):
        made = create_model(backbone, weights=backbone_weights, **(backbone_options or {}))
        if not isinstance(made, Backbone):
            raise ValueError(f"create_model: expected a backbone below a baseline or method, got {backbone!r}")
        backbone = made
    elif not isinstance(backbone, Backbone):
        if backbone_weights is not None:
            load_weights(backbone, backbone_weights)
        backbone = Adapter(backbone, **(backbone_options or {}))
    elif backbone_weights is not None or backbone_options:
        raise ValueError("create_model: expected backbone_weights and backbone_options beside the name of a backbone")
    return kind(backbone, **options)


def _baseline(kind: type[Baseline], *, num_classes: int | None = None, **options: Any) -> nn.Module:
    if num_classes is None or num_classes < 1:
        raise ValueError(f"create_model: expected num_classes, the number of training identities, got {num_classes}")
    return _over_backbone(kind, num_classes=num_classes, **options)


def _classes_in(weights: str | os.PathLike[str]) -> int:
    for key, value in read_weights(weights).items():
        if key.endswith(("classifier.weight", "classifiers.0.weight", "classifier.4.weight")):
            return len(value)
    raise WeightsError(f"create_model: {weights} holds no classifier, so give num_classes")


_BASELINES: dict[str, type[Baseline]] = {"ide": IDE, "strong_baseline": StrongBaseline, "pcb": PCB, "casn": CASN}
for _name, _kind in _BASELINES.items():
    register_model(_name, partial(_baseline, _kind))
register_model("paul", partial(_over_backbone, PatchNet))
register_model("cluster_contrast", partial(_over_backbone, ClusterContrast))
register_model("npsm", partial(_over_backbone, NPSM))
register_model("two_stage", partial(_over_backbone, RegionEmbedder))
for _name, _channels in OSNET_CHANNELS.items():
    register_model(_name, partial(OSNet, _channels))
register_model("osnet_ibn_x1_0", partial(OSNet, OSNET_CHANNELS["osnet_x1_0"], instance_norm=True))
for _name, (_block, _layers) in RESNET_LAYERS.items():
    register_model(_name, partial(ResNet, _block, _layers))
register_model("mobilenet_v2", MobileNetV2)
register_model("inception_v3", InceptionV3)
register_model("color_stripes", ColorStripes)
register_model("drsta", drsta)
register_model("qan", qan)
register_model("rru_stim", rru_stim)
