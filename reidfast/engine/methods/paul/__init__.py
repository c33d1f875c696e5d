# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""PAUL: supervised pre-training of PatchNet on a labelled source, and unsupervised adaptation to a target."""

from reidfast.engine.method import Method
from reidfast.engine.methods.paul import source, task
from reidfast.engine.methods.paul.config import Config, PatchDataConfig, SourceConfig
from reidfast.engine.methods.paul.data import ViewsDataModule
from reidfast.engine.methods.paul.task import PaulTask

__all__ = ["METHODS", "Config", "PatchDataConfig", "PaulTask", "SourceConfig", "ViewsDataModule"]

METHODS = (
    *(Method(name, Config, task.build) for name in ("paul", "paul-osnet", "paul-paper")),
    Method("paul-source", SourceConfig, source.build),
)
