# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast info`: versions, how this copy was built, and what serves each op."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata
from typing import Any

from ._common import add_command, add_json, print_json, print_table

OPTIONAL = ("triton", "safetensors", "matplotlib", "jinja2", "rich", "lightning", "scikit-learn", "onnxruntime", "cupy")


def add(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = add_command(subparsers, "info", run, "show versions, the build, and which implementation serves each op")
    parser.add_argument("--models", action="store_true", help="list the models only")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Print it."""
    if args.models:
        from reidfast.models import list_models

        print_json(list_models()) if args.json else print("\n".join(list_models()))
        return
    facts = collect()
    if args.json:
        print_json(facts)
        return
    for name, value in facts["versions"].items():
        print(f"{name:14}{value}")
    build = facts["build"]
    print(f"{'compiled':14}{'yes' if build['native'] else 'no: ' + build['native_reason']}")
    for key in sorted(set(build) - {"native", "native_reason", "cuda", "cuda_reason"}):
        print(f"  {key:12}{build[key]}")
    print(f"{'with CUDA':14}{'yes' if build['cuda'] else 'no: ' + build['cuda_reason']}")
    cpu = facts["cpu"]
    print(f"{'CPU':14}{cpu['capability']}, {cpu['threads']} threads of {cpu['cores']} cores")
    print(f"{'  products by':14}{cpu['products']}")
    gpus = facts["cuda"]
    print(f"{'GPU':14}{', '.join(gpus['devices']) if gpus['devices'] else gpus['reason']}")
    print()
    rows = []
    for op, devices in facts["backends"].items():
        for device, row in devices.items():
            reasons = "; ".join(f"{name}: {text}" for name, text in row.items() if name != "serves")
            rows.append((op, device, row["serves"], reasons))
    print_table(("op", "device", "served by", "others"), rows)


def collect() -> dict[str, Any]:
    """The facts as plain data."""
    import torch

    import reidfast
    from reidfast.ops import _extension

    versions = {"reidfast": reidfast.__version__, "python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: _version(name) for name in ("numpy", "scipy", "pillow")}
    versions |= {name: found for name in OPTIONAL if (found := _version(name)) != "not installed"}
    build = dict(_extension.read_build_info())
    if _extension.extension is not None:
        build |= dict(_extension.extension.build_info())
    build |= {"native": _extension.extension is not None, "native_reason": _extension.native_reason}
    build |= {"cuda": _extension.has_cuda, "cuda_reason": _extension.cuda_reason}
    available = torch.cuda.is_available()
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if available else []
    reason = "" if available else ("none found" if torch.version.cuda else f"torch {torch.__version__} has no CUDA")
    return {
        "versions": versions,
        "build": {key: value if isinstance(value, bool | int | float) else str(value) for key, value in build.items()},
        "cpu": {
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "products": _extension.extension.product_library() if _extension.extension else "torch",
        },
        "cuda": {"torch": torch.version.cuda, "devices": devices, "reason": reason},
        "backends": reidfast.backends(),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
