# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Reading and writing parameters: safe formats only, strict by default, and every mismatch named."""

from __future__ import annotations

import os
import pickle
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from reidfast._files import write_whole

__all__ = ["Loaded", "WeightsError", "load_weights", "read_weights", "save_weights", "unfold_batch_norms"]

SUFFIXES = (".npz", ".safetensors", ".pt", ".pth")
NESTS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "base.")
READABLE = (*SUFFIXES, ".ckpt")
SHOWN = 4


class WeightsError(ValueError):
    """A file that holds no usable parameters, or not those of the model."""


class Loaded(NamedTuple):
    """What `load_weights` did: keys copied, absent from the file, not of the model, and of another shape."""

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, on the CPU, without running any code that the file may hold.

    Args:
        path: `.npz` (read without pickle), `.safetensors`, `.pt`, `.pth` or `.ckpt` (read with `weights_only=True`). A
            training checkpoint that keeps its parameters under `state_dict`, `model_state_dict`, `model` or `net` is
            opened.

    Raises:
        FileNotFoundError: No such file.
        WeightsError: Not a checkpoint of these kinds, truncated, or without tensors.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"load_weights: expected a file of weights, but {path} {what}")
    if path.suffix not in READABLE:
        raise WeightsError(f"load_weights: expected a file ending in {', '.join(READABLE)}, got {path.name}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                content: object = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        elif path.suffix == ".safetensors":
            content = _read_safetensors(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"load_weights: {path} is not a checkpoint of plain tensors ({_first_line(error)}); "
            "only tensors are read, for safety: save it again as torch.save(model.state_dict(), ...)"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = _first_line(error)
        raise WeightsError(
            f"load_weights: {path} is not a {path.suffix} checkpoint, or is damaged or cut short ({reason})"
        ) from error
    return _tensors(content, path)


def load_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    strict: bool = True,
    *,
    drop_classifier: bool = False,
    drop: Iterable[str] = (),
) -> Loaded:
    """Copy the parameters of a file into `model`.

    Prefixes that wrappers leave on every key (`module.`, `_orig_mod.`, `model.`, `backbone.`, `base.`) are removed
    where that makes keys match. Counters `num_batches_tracked` may be absent. Nothing is copied if the call raises.

    Args:
        model: Any module; a `Backbone` also translates other public key names of its network.
        path: See `read_weights`.
        strict: Raise unless every parameter of the model is in the file, with its shape, and nothing else is there.
            False copies what matches.
        drop_classifier: Leave out the identity or ImageNet classifier of the file, by the model's
            `classifier_prefixes` (else `classifier.`).
        drop: Further beginnings of keys to leave out.

    Returns:
        `Loaded(loaded, missing, unexpected, mismatched)`, lists of keys; keys left out on request are in none of them.

    Raises:
        FileNotFoundError: No such file.
        WeightsError: The file is no checkpoint, or (strict) does not fit; the message names the keys and, for shapes,
            both of them. Not strict: nothing at all fits.
    """
    state = read_weights(path)
    state = _strip(state, model.state_dict())
    translate = getattr(model, "translate_keys", None)
    if translate is not None:
        state = translate(state)
    dropped = tuple(drop) + (tuple(getattr(model, "classifier_prefixes", ("classifier.",))) if drop_classifier else ())
    return fit_state(model, state, path, strict, dropped)


def fit_state(
    model: nn.Module,
    state: dict[str, Tensor],
    path: str | os.PathLike[str],
    strict: bool = True,
    dropped: tuple[str, ...] = (),
) -> Loaded:
    """Copy named tensors into `model`, as `load_weights` does; `path` is what messages call them."""
    own = model.state_dict()
    kept_by_model = tuple(prefix for prefix in dropped if any(key.startswith(prefix) for key in own))
    if kept_by_model:
        own = {key: value for key, value in own.items() if not key.startswith(kept_by_model)}
    if dropped:
        state = {key: value for key, value in state.items() if not key.startswith(dropped)}

    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    mismatched = [key for key in own if key in state and own[key].shape != state[key].shape]
    loaded = [key for key in own if key in state and own[key].shape == state[key].shape]
    broken = [key for key in loaded if state[key].is_floating_point() and not state[key].isfinite().all()]
    if broken:
        raise WeightsError(f"load_weights: {path} holds NaN or infinity in {_some(broken)}")
    if strict and (missing or unexpected or mismatched):
        parts = []
        if mismatched:
            parts.append(
                "wrong shape: "
                + _some([f"{k} {_shape(state[k])} for the model's {_shape(own[k])}" for k in mismatched])
            )
        if missing:
            parts.append("missing: " + _some(missing))
        if unexpected:
            parts.append("unexpected: " + _some(unexpected))
        raise WeightsError(
            f"load_weights: {path} does not fit {type(model).__name__}: {'; '.join(parts)} "
            f"(strict=False takes the {len(loaded)} that fit)"
        )
    if not loaded:
        raise WeightsError(
            f"load_weights: nothing in {path} fits {type(model).__name__}; it holds {_some(list(state))}"
        )
    with torch.no_grad():
        for key in loaded:
            own[key].copy_(state[key])
    return Loaded(loaded, missing, unexpected, mismatched)


def save_weights(model: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write parameters as `.safetensors`, `.npz`, `.pt` or `.pth`; the file appears whole or not at all."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"save_weights: expected a name ending in {', '.join(SUFFIXES)}, got {path.name}")
    source = model.state_dict() if isinstance(model, nn.Module) else model
    state = {key: value.detach().cpu().contiguous() for key, value in source.items()}
    with write_whole(path) as stream:
        if path.suffix == ".npz":
            np.savez(stream, **{key: value.numpy() for key, value in state.items()})  # type: ignore[arg-type]
        elif path.suffix == ".safetensors":
            from safetensors.torch import save

            stream.write(save(state))
        else:
            torch.save(state, stream)


@torch.no_grad()
def unfold_batch_norms(model: nn.Module, images: Tensor | Iterable[Tensor], *, batch: int = 64) -> list[str]:
    """Give folded batch norms back the statistics of their input, so that the network can be trained.

    Folding for deployment moves scale and shift of a batch norm into the convolution before it and leaves weight 1,
    mean 0, variance 1 - eps and the shift as bias: right in evaluation mode, but in training mode the batch statistics
    would rescale every channel. One pass over `images` records mean m and variance v of what enters each folded norm;
    then

        running_mean = m, running_var = v, weight = sqrt(v + eps), bias = bias + m

    which leaves evaluation mode as it was, and makes training mode agree with it up to the noise of a batch. Norms
    that are not folded stay.

    Args:
        model: Left in the mode that it was in.
        images: `[N, 3, H, W]`, prepared as for evaluation, or batches of such; some 200 pictures do.
        batch: Rows of a tensor that are passed at a time.

    Returns:
        The names of the batch norms that were unfolded.

    Raises:
        ValueError: No images.
    """
    norms = {name: norm for name, norm in model.named_modules() if _is_folded(norm)}
    moments = {name: _Moments() for name in norms}
    hooks = [norm.register_forward_pre_hook(moments[name].record) for name, norm in norms.items()]
    training = model.training
    count = 0
    try:
        model.eval()
        for rows in images.split(batch) if isinstance(images, Tensor) else images:
            count += len(rows)
            if len(rows):
                model(rows)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if count == 0:
        raise ValueError("unfold_batch_norms: expected at least one image, got none")
    unfolded = [name for name in norms if moments[name].count]
    for name in unfolded:
        norm, (mean, variance) = norms[name], moments[name].result()
        scale = (variance + norm.eps).sqrt()
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(scale)
        norm.bias.copy_(norm.bias.double() + mean)
    return unfolded


class _Moments:
    """Count, mean and squared deviations per channel, merged in float64 (Chan, Golub, LeVeque 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def record(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].double().transpose(0, 1).flatten(1)  # [C, B * H * W]
        mean = x.mean(1)
        squares = (x - mean[:, None]).square().sum(1)
        total = self.count + x.shape[1]
        shift = mean - self.mean.to(mean)
        self.squares = self.squares.to(mean) + squares + shift.square() * (self.count * x.shape[1] / total)
        self.mean = self.mean.to(mean) + shift * (x.shape[1] / total)
        self.count = total

    def result(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.squares / self.count


def _is_folded(module: nn.Module) -> bool:
    if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) or module.running_var is None or not module.affine:
        return False
    if (module.weight != 1).any() or module.running_mean is None or bool(module.running_mean.any()):
        return False
    return bool((module.running_var + module.eps - 1).abs().max() <= 1e-6)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            'load_weights: .safetensors needs the package safetensors: pip install "reidfast[train]"'
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        content = next((content[nest] for nest in NESTS if isinstance(content.get(nest), Mapping)), content)
    if not isinstance(content, Mapping):
        raise WeightsError(f"load_weights: expected named tensors in {path}, got {type(content).__name__}")
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise WeightsError(
            f"load_weights: {path} holds no tensors, only {_some([str(key) for key in content]) or 'nothing'}"
        )
    return state


def _strip(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the chain of up to three wrappers' prefixes after which most keys are the model's."""
    chains, longer = [""], [""]
    for _ in range(3):
        longer = [chain + p for chain in longer for p in PREFIXES if any(key.startswith(chain + p) for key in state)]
        chains += longer
    best = max(chains, key=lambda chain: sum(key.removeprefix(chain) in own for key in state))
    return {key.removeprefix(best): value for key, value in state.items()}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:120].rstrip(".") if text else type(error).__name__
