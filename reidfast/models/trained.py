# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Models that a training run left: made again from the card beside, or inside, their weights."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .registry import create_model
from .weights import WeightsError, fit_state, read_weights

__all__ = ["Trained", "is_trained", "load_trained", "read_card"]

CARD = "card.json"
WEIGHTS = "weights.safetensors"


class Trained(NamedTuple):
    """A model and what its card says.

    Attributes:
        model: With its weights, in evaluation mode.
        card: `model` (name and options for `create_model`), `size` and `filter` of the input, `data`, ...
        source: The file that the weights came from.
    """

    model: nn.Module
    card: dict[str, Any]
    source: Path


def is_trained(path: str | os.PathLike[str]) -> bool:
    """Whether `load_trained` would take this for a run: a folder, a `.ckpt`, or weights with a card beside them."""
    path = Path(path)
    if path.is_dir() or path.suffix == ".ckpt":
        return path.exists()
    return path.is_file() and path.with_name(CARD).is_file()


def load_trained(path: str | os.PathLike[str]) -> Trained:
    """The model of a run, without naming its head or backbone.

    Args:
        path: The run's folder (its weights, or last.ckpt while it is not finished), a checkpoint (`last.ckpt`,
            `best.ckpt`), or a file of weights with `card.json` beside it.

    Raises:
        FileNotFoundError: Nothing of the kind is there.
        WeightsError: Damaged, not a run of reidfast, or a card that does not say how to make the model. Nothing but
            tensors and plain values is read: a file cannot run code.
    """
    card, state, source = _read(Path(path))
    made = card.get("model")
    if not isinstance(made, dict) or not isinstance(made.get("name"), str):
        raise WeightsError(
            f"load_trained: the card of {source} does not say how to make its model; "
            "make it with create_model and load the weights into it"
        )
    try:
        model = create_model(made["name"], **(made.get("options") or {}))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"load_trained: the card of {source} does not make a model: {error}") from error
    fit_state(model, state, source)
    return Trained(model.eval(), card, source)


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the card of a run says; `path` as in `load_trained`."""
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], Path]:
    if path.is_dir():
        found = next((path / name for name in (WEIGHTS, "last.ckpt", "best.ckpt") if (path / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"load_trained: expected {WEIGHTS} or a .ckpt in {path}, found neither")
        path = found
    if path.suffix == ".ckpt":
        return (*_read_checkpoint(path), path)
    state = read_weights(path)
    beside = path.with_name(CARD)
    try:
        card = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"load_trained: no {CARD} beside {path}; name the model, and give the file as its weights"
        ) from None
    except ValueError as error:
        raise WeightsError(f"load_trained: {beside} is not JSON: {error}") from error
    if not isinstance(card, dict):
        raise WeightsError(f"load_trained: expected an object in {beside}, got {type(card).__name__}")
    return card, state, path


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"load_trained: no such file: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"load_trained: {path} holds more than tensors and plain values ({str(error).splitlines()[0][:120]}); "
            "it is not opened, for safety"
        ) from error
    except (OSError, ValueError, RuntimeError, EOFError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise WeightsError(f"load_trained: {path} is no checkpoint, or is damaged or cut short ({reason})") from error
    card = content.get("card") if isinstance(content, dict) else None
    if not isinstance(card, dict):
        raise WeightsError(f"load_trained: {path} is no checkpoint of reidfast: it holds no card")
    # A task keeps its model under "model."; beside it are what only training needs (centres, memories).
    state = {k.removeprefix("model."): v for k, v in content["state_dict"].items() if k.startswith("model.")}
    return card, state
