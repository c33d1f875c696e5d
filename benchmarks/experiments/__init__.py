# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Experiments over real data: arms and seeds, each finished one a file, so that they can be stopped and gone on with."""
