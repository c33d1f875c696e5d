# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The version of the package; CITATION.cff repeats it."""

__version__ = "0.1.0"
