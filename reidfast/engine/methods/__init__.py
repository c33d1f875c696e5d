# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The methods that `reidfast train` knows: the name of a file in `reidfast/configs`, and the module that serves it.

Such a module holds

- `Config`, a dataclass that extends `RunConfig` by the method's sections; `Config.data` has `name`, `root`, `options`;
- `build(config, data) -> (task, datamodule)`: a `ReidTask` and a Lightning data module;
- where the data are not a `ReidData`: `load(config)`, which reads them.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

METHODS: dict[str, str] = {
    "cluster_contrast": "cluster_contrast",
    "casn": "casn",
    "casn-ide": "casn",
    "ide": "baseline",
    "paul": "paul",
    "paul-osnet": "paul",
    "paul-paper": "paul",
    "paul-source": "paul_source",
    "npsm": "npsm",
    "pcb": "baseline",
    "qan": "qan",
    "strong_baseline": "baseline",
    "drsta": "drsta",
    "rru_stim": "rru_stim",
    "two_stage": "npsm",
}


def module_of(method: str) -> ModuleType:
    """The module that serves a method."""
    return import_module(f"{__name__}.{METHODS[method]}")
