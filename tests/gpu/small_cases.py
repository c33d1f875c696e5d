# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Every op once, small, forward and backward: what compute-sanitizer looks at. ``python tests/gpu/small_cases.py``."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from op_cases import CASES, Case, forward_backward  # noqa: E402


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, make in CASES.items():
        for dtype in (torch.float32, torch.bfloat16):
            for odd in (False, True):
                results = forward_backward(*make(Case(dtype, device, odd=odd)))
                assert results, name
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{len(CASES)} ops ran on {device}")


if __name__ == "__main__":
    main()
