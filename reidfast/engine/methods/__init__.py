# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The methods that `reidfast train` knows. A module of this folder lists its own in `METHODS`."""

from __future__ import annotations

try:
    import lightning  # noqa: F401
except ImportError as error:
    raise ImportError('train: lightning is missing; pip install "reidfast[train]"') from error

from reidfast.engine.method import Method
from reidfast.engine.methods import baseline, casn, cluster_contrast, drsta, npsm, paul, qan, rru_stim

__all__ = ["METHODS", "find_method", "list_methods"]

METHODS: dict[str, Method] = {
    method.name: method
    for module in (baseline, casn, cluster_contrast, drsta, npsm, paul, qan, rru_stim)
    for method in module.METHODS
}


def list_methods() -> list[str]:
    """Names of the methods that can be trained, sorted."""
    return sorted(METHODS)


def find_method(name: str) -> Method:
    """The method of that name; a ValueError names the known ones."""
    if name not in METHODS:
        raise ValueError(f"train: expected a method among {', '.join(list_methods())}, got {name!r}")
    return METHODS[name]
