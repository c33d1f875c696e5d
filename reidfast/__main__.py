# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`python -m reidfast` is the command `reidfast`."""

import sys

from reidfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
