# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Triton kernels and their launchers; imported only where Triton is installed."""
