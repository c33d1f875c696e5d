# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""How it is measured: interleaved rounds, so that a change of the machine's load meets every provider alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

OURS = "reidfast"


def sync(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def time_once(step: Callable[[], Any], device: str, inner: int) -> float:
    """Seconds of one step, the mean over ``inner`` back-to-back steps."""
    if device == "cuda":
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(inner):
            step()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) * 1e-3 / inner
    begin = time.perf_counter()
    for _ in range(inner):
        step()
    return (time.perf_counter() - begin) / inner


def measure(
    steps: dict[str, Callable[[], Any]],
    device: str = "cpu",
    *,
    rounds: int = 7,
    round_seconds: float = 0.15,
    budget: float = 60.0,
) -> dict[str, dict[str, Any]]:
    """Time every step, round by round in turn: {name: {"p20", "p50", "p80", "rounds"}} in seconds.

    A baseline that raises gets {"failed": reason} instead; ours is let through to raise.

    Args:
        steps: What to time; each is warmed up twice, once where that takes above 5 seconds. A step above half of
            ``budget`` runs once, and that counts; on CUDA its second run, because the first one compiles.
        device: "cpu" or "cuda".
        rounds: At least 5; fewer only for steps that alone would exceed ``budget``.
        round_seconds: Steps shorter than this are repeated within a round.
        budget: Seconds for one step's rounds.
    """
    inner: dict[str, int] = {}
    count: dict[str, int] = {}
    failed: dict[str, str] = {}
    times: dict[str, list[float]] = {}
    for name, step in steps.items():
        begin = time.perf_counter()
        try:
            step()
        except Exception as error:  # a baseline that cannot run here is a row that says so, not the end of the run
            if name == OURS:
                raise
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            continue
        sync(device)
        once = time.perf_counter() - begin
        times[name] = []
        if device == "cuda" or once <= min(5.0, budget / 2):
            begin = time.perf_counter()
            step()
            sync(device)
            once = max(time.perf_counter() - begin, 1e-7)
        if once > budget / 2:
            times[name].append(once)
            continue
        inner[name] = max(1, min(10_000, int(round_seconds / once)))
        count[name] = max(1, min(rounds, int(budget / (once * inner[name]))))
    for turn in range(rounds):
        for name in count:
            if turn < count[name]:
                times[name].append(time_once(steps[name], device, inner[name]))
    result: dict[str, dict[str, Any]] = {name: {"failed": reason} for name, reason in failed.items()}
    for name, values in times.items():
        ordered = sorted(values)
        at = lambda q, v=ordered: v[min(len(v) - 1, int(q * len(v)))]  # noqa: E731
        result[name] = {"p20": at(0.2), "p50": statistics.median(ordered), "p80": at(0.8), "rounds": len(ordered)}
    return result


def ceilings(device: str = "cpu") -> dict[str, float]:
    """The machine's own limits, measured now: copy bandwidth (read + write, B/s) and float32 product rate (flop/s)."""
    n = 2**26 if device == "cuda" else 2**24
    source, target = torch.ones(n, device=device), torch.ones(n, device=device)
    k = 8192 if device == "cuda" else 2048
    a, b, c = (torch.ones(k, k, device=device) for _ in range(3))
    times = measure({"copy": lambda: target.copy_(source), "mm": lambda: torch.mm(a, b, out=c)}, device, rounds=5)
    return {
        "copy_bytes_per_s": 8.0 * n / times["copy"]["p50"],
        "mm_float32_flop_per_s": 2.0 * k**3 / times["mm"]["p50"],
    }


def environment(device: str = "cpu") -> dict[str, Any]:
    """What a figure depends on: processor, threads, versions, load, commit."""
    import subprocess

    from reidfast.ops import _library

    try:
        with open("/proc/cpuinfo") as lines:
            processor = next(
                (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown"
            )
    except OSError:
        processor = platform.processor() or "unknown"

    def git(*command: str) -> str:
        try:
            done = subprocess.run(["git", *command], capture_output=True, text=True, cwd=os.path.dirname(__file__))
        except OSError:  # no git here
            return ""
        return done.stdout.strip()

    commit = os.environ.get("REIDFAST_COMMIT") or git("rev-parse", "--short", "HEAD")
    dirty = "" if "REIDFAST_COMMIT" in os.environ else git("status", "--porcelain", "-uno")
    result = {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": _library.isa() if _library.loaded else "none",
        "products": _library.product_library(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_1min": round(os.getloadavg()[0], 2),
        "commit": commit + ("+changes" if dirty else ""),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        result |= {
            "device": properties.name,
            "sm": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return result
