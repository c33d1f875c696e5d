# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The data of a run: one set, or several to train on and several to be evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from reidfast.data import ReidData, concatenate, load_dataset

__all__ = ["load_sources", "targets_of"]


def load_sources(config: Any) -> ReidData:
    """What `config.name`, `.root`, `.options` and, where there are, `.targets` name.

    The training tables of several sources are put below each other, identities and cameras of later ones shifted past
    those before. Query and gallery are the first target's; all of them, as `ReidData`, are in `info["targets"]` where
    there are several. Without targets, the sources are the targets. Where `config` has them, `whole` adds the query and
    gallery images to the training table, and `train_ids` keeps that many training identities, the first in order.

    Args:
        config: Names and, for several, lists of roots and options as long as the names (one value: for all).

    Raises:
        ValueError: Lists of other lengths.
    """
    data = _load_together(config)
    train = data.train
    if getattr(config, "whole", False):
        tested = concatenate([data.query, data.gallery], offset=False)
        person = tested.pids >= 0
        if data.distractor is not None:
            person &= tested.pids != data.distractor
        train = concatenate([train, tested.select(person)])
    count = getattr(config, "train_ids", 0)
    if count:
        train = train.select(np.isin(train.pids, np.unique(train.pids)[:count]))
    return data if train is data.train else replace(data, train=train)


def _load_together(config: Any) -> ReidData:
    names, sources = _load_all("data.name", config.name, config.root, config.options)
    wanted = getattr(config, "targets", None)
    if wanted:
        _, targets = _load_all("data.targets", wanted, config.target_root or config.root, config.target_options)
    else:
        targets = sources
    targets = [data for data in targets if len(data.query) and len(data.gallery)]
    first = sources[0]
    if len(sources) == 1 and (not wanted or targets == sources):
        return first
    train = first.train if len(sources) == 1 else concatenate([s.train for s in sources if len(s.train)])
    scored = targets[0] if targets else first
    info = (
        {**first.info, "sources": names, "targets": targets} if len(targets) > 1 else {**first.info, "sources": names}
    )
    return ReidData("+".join(names), train, scored.query, scored.gallery, scored.distractor, info=info)


def targets_of(data: Any) -> dict[str, Any]:
    """The sets that a run is evaluated on, by name; a second one of the same name gets a number."""
    found: dict[str, Any] = {}
    for target in getattr(data, "info", {}).get("targets") or [data]:
        name, number = target.name, 1
        while name in found:
            number += 1
            name = f"{target.name}-{number}"
        found[name] = target
    return found


def _load_all(flag: str, names: Any, roots: Any, options: Any) -> tuple[list[str], list[ReidData]]:
    listed = [names] if isinstance(names, str) else list(names)
    if not listed:
        raise ValueError(f"{flag}: expected at least one name, got none")
    places = _each(f"{flag} root", roots, len(listed))
    settings = _each(f"{flag} options", options or {}, len(listed))
    sets = [load_dataset(n, r, **(o or {})) for n, r, o in zip(listed, places, settings, strict=True)]
    return listed, sets


def _each(what: str, value: Any, count: int) -> Sequence[Any]:
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{what}: expected one, or {count} as there are names, got {len(value)}")
    return value
