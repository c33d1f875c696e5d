# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Models by name: classes register themselves, and `create_model` asks them how they are made."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from reidfast.models.weights import WeightsError, load_weights, read_weights

__all__ = ["create_model", "list_models", "register_model"]

_MODELS: dict[str, Callable[..., nn.Module]] = {}


def register_model(name: str, factory: Callable[..., nn.Module] | None = None) -> Any:
    """Make `create_model(name, **options)` call `factory(**options)`; without a factory, a decorator.

    A class may say more about itself: `create`, a class method that is called instead of the constructor;
    `classifier_keys`, the ends of the keys under which its checkpoints hold the classifier of `num_classes` rows;
    `drops_classifier`, true where checkpoints hold a classifier that the model does not have.

    A name that ends in a colon is a prefix: `create_model("timm:vit_base", **options)` calls the factory of `timm:`
    as `factory("vit_base", **options)`.

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
    """The names that `create_model` knows, sorted; prefixes are left out."""
    return sorted(name for name in _MODELS if not name.endswith(":"))


def create_model(
    name: str, *, weights: str | os.PathLike[str] | None = None, strict: bool = True, **options: Any
) -> nn.Module:
    """A model by its name, in training mode as modules are born.

    Args:
        name: One of `list_models()`, or `timm:NAME` for a network of timm, where that is installed.
        weights: A checkpoint (`load_weights`); a classifier in it is left out where the model has none. None: random
            parameters.
        strict: See `load_weights`.
        options: Keyword arguments of the model's class, for example `last_stride=1`. Baselines and methods take
            `backbone` (a name, or any module that returns a map, tokens or a vector: see `Adapter`, whose options then
            go into `backbone_options`), `backbone_weights` and `backbone_options`. Models with a classifier take
            `num_classes`, which is read from `weights` where it is left out. `npsm` and `two_stage` need a chain of
            modules as backbone (ResNet, OSNet, MobileNetV2), and `num_classes` may be None.

    Raises:
        ValueError: Unknown name, or an option the model does not have.
        WeightsError: The checkpoint is none, or does not fit.
    """
    factory = _find(name)
    keys = getattr(factory, "classifier_keys", ())
    if weights is not None and keys and "num_classes" not in options:
        options["num_classes"] = _classes_in(weights, keys)
    try:
        model: nn.Module = getattr(factory, "create", factory)(**options)
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise ValueError(f"create_model: {name} does not take these options: {error}") from error
    if weights is not None:
        load_weights(model, weights, strict, drop_classifier=getattr(model, "drops_classifier", False))
    return model


def _find(name: str) -> Callable[..., nn.Module]:
    prefix, colon, rest = name.partition(":")
    if colon and prefix + colon in _MODELS:
        return partial(_MODELS[prefix + colon], rest)
    if colon or name not in _MODELS:
        close = difflib.get_close_matches(name, list_models(), 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(list_models())}"
        raise ValueError(f"create_model: expected the name of a model, got {name!r}; {hint}")
    return _MODELS[name]


def _classes_in(weights: str | os.PathLike[str], keys: tuple[str, ...]) -> int:
    for key, value in read_weights(weights).items():
        if key.endswith(keys):
            return len(value)
    raise WeightsError(f"create_model: {weights} holds no classifier, so give num_classes")
