# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Person search: NPSM, and the two-stage baseline on the same network."""

from reidfast.engine.method import Method
from reidfast.engine.methods.npsm.config import Config
from reidfast.engine.methods.npsm.data import PairModule
from reidfast.engine.methods.npsm.task import PersonSearchTask, build, load

__all__ = ["METHODS", "Config", "PairModule", "PersonSearchTask"]

METHODS = tuple(Method(name, Config, build, load) for name in ("npsm", "two_stage"))
