# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Drop-in replacements with the names and signatures of torchreid, fast-reid and OpenUnReID.

Use the functions in place of theirs, or call ``patch()`` of a module to swap them inside the imported package and
``unpatch()`` to put the originals back. Nothing is swapped by importing this.
"""

from __future__ import annotations

from reidfast.compat import fastreid, openunreid, torchreid

__all__ = ["fastreid", "openunreid", "torchreid"]
