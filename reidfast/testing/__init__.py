# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What our tests use, shipped so that users can test their own kernels and re-ID code the same way."""

from __future__ import annotations

from reidfast.testing._compare import assert_no_worse
from reidfast.testing._inputs import FLOATS, devices, make_embeddings, make_identities, shape_id
from reidfast.testing._overhead import call_overhead
from reidfast.testing._peak import peak_memory
from reidfast.testing._states import isa, nan_poison, threads

__all__ = [
    "FLOATS",
    "assert_no_worse",
    "call_overhead",
    "devices",
    "isa",
    "make_embeddings",
    "make_identities",
    "nan_poison",
    "peak_memory",
    "shape_id",
    "threads",
]
