# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast info`: versions, how this copy was built, and what serves each op."""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
from importlib import metadata
from typing import Any

from ._common import add_command, add_json, print_json, print_table

OPTIONAL = ("triton", "safetensors", "matplotlib", "jinja2", "rich", "lightning", "scikit-learn", "onnxruntime", "cupy")


def add(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = add_command(subparsers, "info", run, "show versions, the build, and which implementation serves each op")
    parser.add_argument("--models", action="store_true", help="list the models only")
    parser.add_argument(
        "--ops", action="store_true", help="list per op and device what serves it, and why others do not"
    )
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
    elif args.ops:
        rows = []
        for op, devices in facts["backends"].items():
            for device, row in devices.items():
                reasons = "; ".join(f"{name}: {text}" for name, text in row.items() if name != "serves")
                rows.append((op, device, row["serves"], reasons))
        print_table(("op", "device", "served by", "others"), rows)
    else:
        for name, text in summary(facts):
            print(f"{name:10}{text}")


def summary(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts in ten lines, the last of them a verdict."""
    versions, build, cpu, gpus = facts["versions"], facts["build"], facts["cpu"], facts["cuda"]
    compiled = f"yes, by {build.get('compiler', 'unknown')}"
    if not build["module"]:
        compiled += f"; reidfast._C is not built for Python {versions['python']}: Ctrl-C waits for the end of an op"
    return [
        ("reidfast", f"{versions['reidfast']} on Python {versions['python']}"),
        ("torch", versions["torch"]),
        ("native", compiled if build["native"] else f"no: {build['native_reason']}"),
        ("CPU", f"{cpu['isa']}, {cpu['threads']} threads of {cpu['cores']} cores, products by {cpu['products']}"),
        ("CUDA", f"built for {build['cuda_architectures']}" if build["cuda"] else f"no: {build['cuda_reason']}"),
        ("GPU", "; ".join(gpus["devices"]) if gpus["devices"] else gpus["reason"]),
        ("driver", gpus["driver"] or "none"),
        ("Triton", facts["triton"]),
        ("packages", ", ".join(f"{name} {versions[name]}" for name in versions if name not in _NAMED)),
        ("verdict", facts["verdict"]),
    ]


_NAMED = ("reidfast", "python", "torch", "triton")


def collect() -> dict[str, Any]:
    """The facts as plain data."""
    import torch

    import reidfast
    from reidfast.ops import _backends, _library

    versions = {"reidfast": reidfast.__version__, "python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: _version(name) for name in ("numpy", "scipy", "pillow")}
    versions |= {name: version for name in OPTIONAL if (version := _version(name)) != "not installed"}
    build = _library.build_info()
    available = torch.cuda.is_available()
    devices = [_gpu(i, build["cuda_architectures"]) for i in range(torch.cuda.device_count())] if available else []
    reason = "none found" if torch.version.cuda else f"torch {torch.__version__} has no CUDA"
    table = reidfast.backends()
    return {
        "versions": versions,
        "build": {key: value if isinstance(value, bool | int | float) else str(value) for key, value in build.items()},
        "cpu": {
            "isa": _library.isa() if _library.loaded else "plain PyTorch",
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "products": _library.product_library(),
        },
        "cuda": {
            "torch": torch.version.cuda,
            "devices": devices,
            "reason": "" if available else reason,
            "driver": _driver() if available else "",
        },
        "triton": versions.get("triton") or _backends.triton_reason(),
        "backends": table,
        "verdict": _verdict(table, devices),
    }


def _gpu(index: int, built: str) -> str:
    """A GPU, its compute capability, and whether the CUDA library has code for it."""
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    text = f"{torch.cuda.get_device_name(index)} ({major}.{minor})"
    return f"{text}, {'covered' if covers(built, major, minor) else 'not covered by this build'}" if built else text


def covers(built: str, major: int, minor: int) -> bool:
    """Whether architectures as CMake spells them ("80-real 90") hold machine code or PTX that a device can run."""
    for item in built.split():
        match = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", item)
        if match is None:
            continue
        first, second, suffix, kind = int(match[1]), int(match[2]), match[3], match[4]
        if kind != "-virtual" and first == major and (second <= minor if not suffix else second == minor):
            return True
        if kind != "-real" and not suffix and (first, second) <= (major, minor):
            return True
    return False


def _driver() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split("\n")[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def _verdict(table: dict[str, Any], devices: list[str]) -> str:
    slow = [op for op, rows in table.items() if rows["cpu"]["serves"] == "reference"]
    if slow:
        cpu = f"{len(slow)} of {len(table)} ops run through plain PyTorch on the CPU"
    else:
        cpu = f"all {len(table)} ops are native on the CPU"
    if not devices:
        return cpu
    slow = [op for op, rows in table.items() if rows["cuda"]["serves"] == "reference"]
    if any("not covered" in device for device in devices):
        return f"{cpu}; a GPU is not covered by this build: its ops run through plain PyTorch"
    if slow:
        return f"{cpu}, {len(table) - len(slow)} on the GPU (reidfast info --ops says why)"
    return f"{cpu}, all {len(table)} on the GPU"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
