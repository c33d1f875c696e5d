# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""reidfast: fast person re-identification for PyTorch.

Importing never compiles anything and never needs a GPU. ``reidfast.ops`` holds the fused ops, ``reidfast.evaluation``
the protocols; ``reidfast.backends()`` says which implementation serves which device, and why another one does not.
"""

from __future__ import annotations

from reidfast import evaluation, ops
from reidfast.ops._backends import backends, implementations, use_backend
from reidfast.version import __version__

__all__ = ["__version__", "backends", "evaluation", "implementations", "ops", "use_backend"]
