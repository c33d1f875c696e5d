# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Swapping functions inside a package that is already there, and putting them back."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


class Patcher:
    """Replaces functions of one package wherever its modules hold them.

    Args:
        package: Top-level name.
        functions: (defining module below the package, name) -> replacement. Modules that the installed version does not
            have are left out; where a function moved between versions, list both places.
    """

    def __init__(self, package: str, functions: Mapping[tuple[str, str], Callable[..., Any]]) -> None:
        self.package = package
        self.functions = functions
        self._originals: dict[tuple[str, str], Any] = {}
        self._swapped: list[tuple[ModuleType, str, Any]] = []

    def patch(self) -> list[str]:
        """Swap the functions in. Returns what was replaced, as "module.name".

        Every module of the package that is loaded now and holds an original, under whatever name, gets the replacement:
        ``from package.metrics import evaluate_rank`` inside the package is covered. Calling it again covers modules
        loaded since.

        Raises:
            RuntimeError: the package is not installed, or none of its modules can be imported.
        """
        if self.package not in sys.modules and importlib.util.find_spec(self.package) is None:
            raise RuntimeError(f"patch: expected {self.package} to be installed, it is not")
        self._find_originals()
        if not self._originals:
            raise RuntimeError(
                f"patch: expected {self.package} to have functions that reidfast.compat.{self.package} replaces, "
                "found none that can be imported"
            )
        replacement = {id(original): self.functions[key] for key, original in self._originals.items()}
        names = []
        for module_name, module in list(sys.modules.items()):
            inside = module_name == self.package or module_name.startswith(self.package + ".")
            if module is None or not inside:
                continue
            for name, value in list(vars(module).items()):
                ours = replacement.get(id(value))
                if ours is not None:
                    setattr(module, name, ours)
                    self._swapped.append((module, name, value))
                    names.append(f"{module_name}.{name}")
        return sorted(names)

    def unpatch(self) -> list[str]:
        """Put the originals back. Returns what was restored; nothing where nothing was swapped."""
        names = []
        while self._swapped:
            module, name, original = self._swapped.pop()
            setattr(module, name, original)
            names.append(f"{module.__name__}.{name}")
        self._originals.clear()
        return sorted(names)

    def _find_originals(self) -> None:
        for key, ours in self.functions.items():
            if key in self._originals:
                continue
            full = f"{self.package}.{key[0]}"
            try:
                module = sys.modules.get(full) or importlib.import_module(full)
            except ImportError:
                continue
            original = getattr(module, key[1], None)
            if original is not None and original is not ours:
                self._originals[key] = original
