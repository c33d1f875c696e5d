# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Studies of the six methods: arms and seeds, compared by their scores, one file for each run that is finished."""
