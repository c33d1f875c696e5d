# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Build, test and measure on an NVIDIA GPU in one go: ``make gpu-check`` or ``python tools/gpu_check.py``.

No network, under nine minutes. Needs torch with CUDA, nvcc, cmake, ninja, pybind11 and pytest in this Python. Builds
for the GPU at hand, runs the GPU tests, measures what the GPU can do (copy, matrix products), then PLAN: the entries of
benchmarks/ with their baselines; and looks for bad memory accesses and races where compute-sanitizer works. Writes
report.json and benchmarks/results/<device>-<date>.json, and prints a table. Changes none of the GPU's settings.

Exit status: 0 all well, 1 a stage failed (the report says which), 2 there is no GPU to check.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "gpu-check"
OURS = "reidfast"


class Clock:
    """What is left of the time for the whole check."""

    def __init__(self, budget: float) -> None:
        self.end = time.monotonic() + budget

    @property
    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())


def run(stage: str, command: list[str], limit: float, **environment: str) -> dict[str, Any]:
    """Run a command, its output to a log file: {"status": "ok"|"failed"|"timeout", "seconds", "log", "tail"}."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{stage}.log"
    begin = time.monotonic()
    with log.open("w") as out:
        try:
            surroundings = {**os.environ, **environment}
            done = subprocess.run(
                command, cwd=ROOT, env=surroundings, stdout=out, stderr=subprocess.STDOUT, timeout=limit
            )
            status = "ok" if done.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "timeout"
    tail = log.read_text(errors="replace")[-2000:]
    seconds = round(time.monotonic() - begin, 1)
    return {"status": status, "seconds": seconds, "log": str(log.relative_to(ROOT)), "tail": tail}


def find_nvcc() -> str | None:
    """Where nvcc is."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    return str(home / "bin" / "nvcc") if (home / "bin" / "nvcc").is_file() else shutil.which("nvcc")


def preflight() -> tuple[dict[str, Any], str]:
    """Facts about the software here, and why no GPU can be checked (empty where one can)."""
    import torch

    facts = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda}
    nvcc = find_nvcc()
    if nvcc:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        facts["nvcc"] = next(iter(re.findall(r"release ([\d.]+)", text)), "unknown")
    facts["triton"] = __import__("triton").__version__ if importlib.util.find_spec("triton") else None
    for name in ("cmake", "ninja", "compute-sanitizer"):
        facts[name] = bool(shutil.which(name))
    missing = [name for name in ("pybind11", "pytest") if importlib.util.find_spec(name) is None]
    if torch.version.cuda is None:
        return facts, f"torch {torch.__version__} is a CPU build"
    if not torch.cuda.is_available():
        return facts, f"torch {torch.__version__} sees no CUDA device"
    if nvcc is None:
        return facts, "nvcc was not found in CUDA_HOME, /usr/local/cuda or PATH"
    if missing:
        return facts, f"this Python lacks {' and '.join(missing)}"
    return facts, ""


def build(clock: Clock) -> dict[str, Any]:
    """Compile the extension for the GPU at hand, in place."""
    import torch

    architecture = "{}.{}".format(*torch.cuda.get_device_capability())
    stage = run(
        "build",
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        min(240, clock.left),
        REIDFAST_CUDA="1",
        REIDFAST_NATIVE="1",
        TORCH_CUDA_ARCH_LIST=architecture,
    )
    return stage | {"architecture": architecture}


def read_junit(path: Path) -> dict[str, int]:
    """Tests by outcome.

    >>> import tempfile; p = Path(tempfile.mkdtemp()) / "x.xml"
    >>> _ = p.write_text('<testsuites><testsuite tests="5" failures="1" errors="0" skipped="2"/></testsuites>')
    >>> read_junit(p)
    {'passed': 2, 'failed': 1, 'skipped': 2}
    """
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return {"passed": 0, "failed": 0, "skipped": 0}
    count = {k: sum(int(s.get(k, 0)) for s in suites) for k in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    return {"passed": count["tests"] - failed - count["skipped"], "failed": failed, "skipped": count["skipped"]}


def test_command(junit: Path) -> list[str]:
    """pytest with everything that runs a kernel on the GPU."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "tests/triton", "tests/ops", "tests/evaluation", "-q"]
    command += ["-m", "not slow", "-k", "(cuda or gpu or triton) and not cuda_emu", f"--junitxml={junit}"]
    workers = min(6, os.cpu_count() or 1) if importlib.util.find_spec("xdist") else 0
    return [*command, "-n", str(workers)] if workers else command


def tests(clock: Clock) -> dict[str, Any]:
    """tests/gpu, the Triton tests, and the tests of ops and evaluation on the CUDA device."""
    junit = LOGS / "tests.xml"
    return run("tests", test_command(junit), min(200, clock.left)) | read_junit(junit)


def sanitize(clock: Clock) -> dict[str, Any]:
    """Small cases of every op under memcheck and racecheck."""
    if not shutil.which("compute-sanitizer"):
        return {"status": "skipped", "reason": "compute-sanitizer is not installed"}
    result: dict[str, Any] = {"status": "ok"}
    for checker in ("memcheck", "racecheck"):
        command = ["compute-sanitizer", "--tool", checker, "--error-exitcode", "99", sys.executable]
        command += ["tests/gpu/small_cases.py"]
        surroundings = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
        stage = run(checker, command, min(40, clock.left), **surroundings)
        if "Device not supported" in stage["tail"] or "Failed to initialize" in stage["tail"]:
            stage |= {"status": "skipped", "reason": "compute-sanitizer does not work on this machine"}
        result[checker] = stage
        if stage["status"] == "failed":
            result["status"] = "failed"
    return result


def ceilings() -> dict[str, float]:
    """What this GPU can do, measured now: a copy larger than its cache (read + write), and square products."""
    import torch

    from benchmarks.timing import measure

    n = 2**30  # 4 GiB each way
    source, goal = torch.empty(n, device="cuda").normal_(), torch.empty(n, device="cuda")
    copy = measure({"copy": lambda: goal.copy_(source)}, "cuda", rounds=7)["copy"]
    found = {"copy_bytes_per_s": 8.0 * n / copy["p50"]}
    k = 8192
    for name, dtype, tf32 in (
        ("bfloat16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        a, b = (torch.randn(k, k, device="cuda", dtype=dtype) for _ in range(2))
        before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, tf32
        seconds = measure({"mm": lambda a=a, b=b: a @ b}, "cuda", rounds=7)["mm"]["p50"]
        torch.backends.cuda.matmul.allow_tf32 = before
        found[f"mm_{name}_flop_per_s"] = 2.0 * k**3 / seconds
    return found


def peak_bytes(step: Any) -> int:
    """Device memory that one step takes beyond what stands already."""
    import torch

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def graph_seconds(step: Any) -> float | None:
    """Time of a step replayed from a CUDA graph, free of launch gaps; None where it cannot be captured."""
    import torch

    from benchmarks.timing import measure

    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = step()
        seconds = measure({"graph": graph.replay}, "cuda", rounds=7)["graph"]["p50"]
        del kept
        return seconds
    except RuntimeError:
        torch.cuda.synchronize()
        return None


# What is measured, the most telling first: entries of the registry and their shapes. What no time is left for is named
# in the report. Entries that train or load images are not about kernels and stay out.
PLAN: dict[str, tuple[str, ...]] = {
    "rank_distances": ("market",),
    "rank tf32x3": ("market", "msmt17"),
    "rank certified": ("market", "msmt17"),
    "rank bf16": ("market",),
    "rank": ("market",),
    "search": ("market",),
    "memory_loss": ("market", "msmt17", "ecn"),
    "memory_match": ("market",),
    "memory_update_": ("market",),
    "pool_patches": ("paul",),
    "sample_patches": ("paul",),
    "diverse_attention": ("drsta",),
    "set_pool ragged": ("video", "small"),
    "set_pool dense": ("video",),
    "batch_hard": ("256", "1024"),
    "cyclic_negatives": ("easy", "400"),
    "rerank": ("market",),
    "jaccard_graph": ("market train",),
    "query_lstm_cell": ("frame",),
    "gated_update": ("training",),
    "region_scores": ("clusters",),
    "grad_cam": ("resnet",),
    "pool_patches channels_last": ("paul",),
    "sample_patches channels_last": ("paul",),
}


def measure_entry(
    bench: Any, shape_name: str, ceiling: dict[str, float], device: str = "cuda", without: str = "nothing"
) -> dict[str, Any]:
    """One entry of the registry at one shape: times, graph replays, peak memory and share of the floor.

    Baselines whose name has ``without`` in it are left out.
    """
    import torch

    from benchmarks.timing import measure

    shape = bench.shapes[shape_name]
    torch.manual_seed(0)
    torch.compiler.reset()
    steps = {n: step for n, step in bench.providers(shape, device).items() if without not in n}
    times = measure(steps, device, rounds=7, round_seconds=0.05, budget=2.0)
    for name, step in steps.items():
        if "p50" in times[name] and device == "cuda":
            times[name]["peak_bytes"] = peak_bytes(step)
            times[name]["graph_p50"] = graph_seconds(step)
    return make_row(bench.name, bench.mode, shape_name, shape, bench.bytes(shape), bench.flops(shape), times, ceiling)


def make_row(
    name: str,
    mode: str,
    shape_name: str,
    sizes: dict[str, Any],
    least_bytes: float,
    flops: float,
    times: dict[str, dict[str, Any]],
    ceiling: dict[str, float],
) -> dict[str, Any]:
    """A row of the report. Floor: the larger of bytes over copy bandwidth and flops over the tf32 rate."""
    floor = max(least_bytes / ceiling["copy_bytes_per_s"], flops / ceiling["mm_tf32_flop_per_s"])
    ours = times[OURS]["p50"]
    return {
        "name": name,
        "mode": mode,
        "shape": shape_name,
        "sizes": sizes,
        "device": "cuda",
        "floor_s": floor,
        "floor_share": floor / min(ours, times[OURS].get("graph_p50") or ours),
        "times_s": times,
        "ratios": {n: t["p50"] / ours for n, t in times.items() if n != OURS and "p50" in t},
        "targets": {},
    }


def grid(clock: Clock, ceiling: dict[str, float], reserve: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """PLAN on the GPU until ``reserve`` seconds are left; what was left out is named."""
    from benchmarks.registry import load_all

    registry = load_all()
    rows, failed, left_out = [], {}, []
    for name, shape_names in PLAN.items():
        for shape_name in shape_names:
            label = f"{name}, {shape_name}"
            if clock.left < reserve:
                left_out.append(label)
                continue
            try:
                rows.append(measure_entry(registry[name], shape_name, ceiling))
                print(line(rows[-1]), flush=True)
            except Exception as error:  # one broken entry must not cost the others
                failed[label] = f"{type(error).__name__}: {str(error)[:300]}"
    status = "failed" if failed or not rows else "ok"
    return {"status": status, "rows": len(rows), "failed": failed, "left_out": left_out}, rows


def line(row: dict[str, Any]) -> str:
    """A row in one line of text."""
    ours = row["times_s"][OURS]
    others = ", ".join(f"{n} {r:.2f}x" for n, r in row["ratios"].items())
    share = f"{100 * row['floor_share']:>4.0f} % of floor"
    return (
        f"{row['name']:<22} {row['shape']:<12} {ours['p50'] * 1e6:>9.1f} us, {share}, "
        f"{(ours.get('peak_bytes') or 0) / 2**20:>7.1f} MiB; {others}"
    )


def microseconds(seconds: float | None) -> str:
    """Four significant digits, or a dash.

    >>> microseconds(1.23456e-4), microseconds(None)
    ('123.5', '-')
    """
    return "-" if seconds is None else f"{seconds * 1e6:.4g}"


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    c, e = report["ceilings"], report["environment"]
    lines = [
        f"{e['device']}, sm_{e['sm'].replace('.', '')}, torch {e['torch']}, CUDA {e['cuda']}, {e['date']}, "
        f"commit {e['commit']}.",
        f"Measured ceilings: copy {c['copy_bytes_per_s'] / 1e12:.2f} TB/s; products "
        + ", ".join(f"{n} {c[f'mm_{n}_flop_per_s'] / 1e12:.0f} TFLOP/s" for n in ("bfloat16", "tf32", "float32"))
        + ".",
        "",
        "| what | size | provider | us | us in a graph | of floor | peak MiB | ours is faster by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["results"]:
        for name, t in row["times_s"].items():
            head = f"| {row['name']}, {row['mode']} | {row['shape']} | {name} |"
            if "failed" in t:
                lines.append(f"{head} failed: {t['failed'][:80]} | | | | |")
                continue
            best = min(t["p50"], t.get("graph_p50") or t["p50"])
            ratio = "" if name == OURS else f"{row['ratios'][name]:.2f}x"
            peak = "-" if t.get("peak_bytes") is None else f"{t['peak_bytes'] / 2**20:.1f}"
            share = f"{100 * row['floor_s'] / best:.0f} %"
            spent = f"{microseconds(t['p50'])} | {microseconds(t.get('graph_p50'))}"
            lines.append(f"{head} {spent} | {share} | {peak} | {ratio} |")
    return "\n".join(lines) + "\n"


def result_name(environment: dict[str, Any]) -> str:
    """File name under benchmarks/results.

    >>> result_name({"device": "NVIDIA H200", "date": "2026-11-21 06:30"})
    'h200-2026-11-21.json'
    """
    device = re.sub(r"[^a-z0-9]+", "-", environment["device"].lower().replace("nvidia", "")).strip("-")
    return f"{device}-{environment['date'][:10]}.json"


def write_json(path: Path, data: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(data, indent=1) + "\n")
    partial.replace(path)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=530, help="seconds for everything (default 530)")
    parser.add_argument("--report", type=Path, default=ROOT / "report.json")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--skip-build", action="store_true", help="the extension stands already")
    options = parser.parse_args(argv)
    clock = Clock(options.budget)
    facts, reason = preflight()
    if reason:
        print(f"gpu-check: no GPU can be checked here: {reason}", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    report: dict[str, Any] = {"software": facts, "stages": {}, "results": []}
    stages = report["stages"]
    if not options.skip_build:
        stages["build"] = build(clock)
        print(f"build: {stages['build']['status']}, {stages['build']['seconds']} s", flush=True)
    if stages.get("build", {"status": "ok"})["status"] == "ok":
        stages["tests"] = tests(clock)
        t = stages["tests"]
        print(f"tests: {t['status']}, {t['passed']} passed, {t['failed']} failed, {t['skipped']} skipped", flush=True)
        from benchmarks.timing import environment

        report["environment"] = environment("cuda")
        report["ceilings"] = ceilings()
        stages["grid"], report["results"] = grid(clock, report["ceilings"], reserve=90)
        write_json(options.report, report)  # whatever happens below
        stages["sanitizer"] = sanitize(clock)
        print(f"sanitizer: {stages['sanitizer']['status']} {stages['sanitizer'].get('reason', '')}", flush=True)
        text = table(report)
        print(text)
        write_json(options.results / result_name(report["environment"]), report)
        (LOGS / "table.md").write_text(text)
    write_json(options.report, report)
    failed = [name for name, stage in stages.items() if stage["status"] in ("failed", "timeout")]
    print(f"gpu-check: wrote {options.report}; " + (f"failed: {', '.join(failed)}" if failed else "all stages passed"))
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
