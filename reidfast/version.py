# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The one place where the version stands."""

__version__ = "0.1.0"
