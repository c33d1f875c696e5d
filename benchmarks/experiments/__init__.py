# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Experiments over real data: arms and seeds, one file for each that is finished, so that they can be stopped."""
