# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Every op in plain PyTorch, written to be read: the truth in tests and the fallback where nothing is compiled.

Each function has the signature of its dispatcher op; ``reidfast.ops.<op>`` has the docstring with the equation and the
source.
"""
