# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A training method: its settings, and how its data, model and task are made."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from reidfast.engine.sources import load_sources

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def load_run_data(config: Any) -> Any:
    """The data that the section `data` names."""
    return load_sources(config.data)


@dataclass(frozen=True)
class Method:
    """What `reidfast train NAME` trains.

    Args:
        name: Name of the method, and of its file of settings in `reidfast/configs`.
        config: Dataclass of its settings, which extends `RunConfig` by sections; `data` and `optim` are among them.
        build: From settings and data to the task (a `ReidTask`) and a Lightning data module.
        load: From settings to the data.
    """

    name: str
    config: type[Any]
    build: Callable[[Any, Any], tuple[Any, Any]]
    load: Callable[[Any], Any] = load_run_data

    def parser(self) -> Any:
        """The jsonargparse parser of its options, whose defaults are those of its YAML file."""
        try:
            from jsonargparse import ArgumentParser
        except ImportError as error:
            raise ImportError('train: jsonargparse is missing; pip install "reidfast[train]"') from error
        parser = ArgumentParser(
            prog=f"reidfast train {self.name}",
            default_config_files=[str(CONFIGS / f"{self.name}.yaml")],
            exit_on_error=False,
            description="Settings come from the method's file, then --config files, then options; later ones win.",
        )
        parser.add_argument("--config", action="config", help="YAML file of settings")
        parser.add_class_arguments(self.config, sub_configs=True)
        return parser

    def parse(self, arguments: Sequence[str] = ()) -> Any:
        """The settings, changed by `arguments` (`--config my.yaml --optim.lr 1e-3 ...`).

        Raises:
            ValueError: An unknown option, or a value of another type.
            ImportError: The extra "train" is not installed.
        """
        parser = self.parser()
        try:
            values = parser.parse_args([_underscores(argument) for argument in arguments])
        except argparse.ArgumentError as error:
            raise ValueError(f"train {self.name}: {error.message}") from error
        values.pop("config", None)
        # the name changed in jsonargparse 4.49
        built = (getattr(parser, "instantiate", None) or parser.instantiate_classes)(values)
        return self.config(**{f.name: getattr(built, f.name) for f in fields(self.config)})


def _underscores(argument: str) -> str:
    """`--source-checkpoint=a-b` as `--source_checkpoint=a-b`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
