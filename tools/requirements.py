# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Prints the requirements of the core and of the named extras, pinned to the torch that is already there.

pip would otherwise be free to answer some package's "torch>=2" with another build of torch.
"""

import sys
from pathlib import Path

import torch

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
wanted = list(project["dependencies"])
for extra in sys.argv[1:]:
    if extra not in project["optional-dependencies"]:
        sys.exit(f"requirements: expected extras among {', '.join(project['optional-dependencies'])}, got {extra}")
    wanted += project["optional-dependencies"][extra]
print(f"torch=={torch.__version__}")
print("\n".join(sorted({w for w in wanted if not w.startswith("torch>")})))
