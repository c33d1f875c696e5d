# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Build, test and measure on an NVIDIA GPU in one go: ``make gpu-check`` or ``python tools/gpu_check.py``.

No network, under nine minutes. Needs torch with CUDA, nvcc, cmake, ninja, pybind11 and pytest in this Python. Builds
for the GPU at hand; runs the GPU tests, compute-sanitizer where it works (bad accesses, races) and, beside them, first
calls of all that is measured later, so that everything is compiled by then; measures what the GPU can do (copy, matrix
products), then PLAN: the entries of benchmarks/ with their baselines. Writes report.json as results come and
benchmarks/results/<device>-<date>.json at the end, and prints a table. Changes none of the GPU's settings.

Entries are measured in a process of their own: one that breaks the GPU's context or hangs costs no other.
REIDFAST_COMMIT names the commit where the tree is a copy without git.

Exit status: 0 all well, 1 a stage failed (the report says which), 2 there is no GPU to check.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "gpu-check"
OURS = "reidfast"
STAGES = ("build", "tests", "grid")
STALL = 100.0  # seconds that one entry may take
GROUPS = 2  # of entries whose kernels are compiled beforehand, side by side
CONFIGS = 4  # the longest list of an autotuner; a process compiles one place of every list


class Clock:
    """What is left of the time for the whole check."""

    def __init__(self, budget: float) -> None:
        self.end = time.monotonic() + budget

    @property
    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())


class Job:
    """A command that runs beside others, its output in a log file; its whole process group ends with it."""

    def __init__(self, stage: str, command: list[str], limit: float, grace: float = 0, **environment: str) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{stage}.log"
        self.begin = time.monotonic()
        self.limit, self.grace = limit, grace
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **environment}, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        atexit.register(self.kill)  # where this process is interrupted

    def stop(self) -> None:
        """Ask first where there is a grace: pytest then still writes what it has."""
        if self.grace and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self.grace)
        self.kill()
        atexit.unregister(self.kill)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> dict[str, Any]:
        """Wait for it: {"status": "ok"|"failed"|"timeout", "seconds", "log", "tail"}."""
        try:
            self.process.wait(max(0.0, self.begin + self.limit - time.monotonic()))
            status = "ok" if self.process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "timeout"
        seconds = round(time.monotonic() - self.begin, 1)
        self.stop()
        tail = self.log.read_text(errors="replace")[-2000:]
        return {"status": status, "seconds": seconds, "log": str(self.log.relative_to(ROOT)), "tail": tail}


def run(stage: str, command: list[str], limit: float, **environment: str) -> dict[str, Any]:
    """Run a command and wait for it, see `Job.finish`."""
    return Job(stage, command, limit, **environment).finish()


def find_tools() -> None:
    """Put this Python's scripts and CUDA's tools on the PATH: a Python may be called by its full name."""
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    folders = [str(Path(sys.executable).parent), sysconfig.get_path("scripts"), str(cuda / "bin")]
    folders.append(str(cuda / "compute-sanitizer"))
    os.environ["PATH"] = os.pathsep.join(dict.fromkeys([*folders, *os.environ.get("PATH", "").split(os.pathsep)]))


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
    if importlib.util.find_spec("setuptools"):
        facts["setuptools"] = __import__("setuptools").__version__
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


def read_log(text: str) -> dict[str, Any]:
    """Tests by outcome from what ``pytest -v`` printed, for a run that was cut off; and the names of those that failed.

    >>> read_log("[gw1] [ 5%] PASSED tests/a.py::x\\n[gw0] FAILED tests/a.py::y[1] \\ntests/b.py::z SKIPPED (why)")
    {'passed': 1, 'failed': 1, 'skipped': 1, 'failures': ['tests/a.py::y[1]']}
    """
    seen: dict[str, str] = {}
    name, outcome = r"(tests/\S+::.+?)", r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL)"
    for line in text.splitlines():
        if found := re.match(rf"\[gw\d+\] (?:\[ *\d+%\] )?{outcome} {name} *$", line):
            seen[found[2]] = found[1]
        elif found := re.match(rf"{name} {outcome}\b", line):
            seen[found[1]] = found[2]
    bad = [n for n, o in seen.items() if o in ("FAILED", "ERROR")]
    passed = sum(o == "PASSED" for o in seen.values())
    return {"passed": passed, "failed": len(bad), "skipped": len(seen) - passed - len(bad), "failures": bad}


def test_command(junit: Path) -> list[str]:
    """pytest with everything that runs a kernel on the GPU; what only compiles was checked without one."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "tests/triton", "tests/ops", "tests/evaluation", "-v"]
    chosen = "(cuda or gpu or triton) and not cuda_emu and not compiles_"
    if shutil.which("compute-sanitizer"):  # runs this script
        chosen += " and not small_cases_script"
    command += ["-m", "not slow", "-k", chosen]
    command += ["--tb=short", f"--junitxml={junit}"]
    workers = min(8, os.cpu_count() or 1) if importlib.util.find_spec("xdist") else 0
    if workers and importlib.util.find_spec("pytest_timeout"):  # a kernel that hangs ends its worker; another starts
        command += ["-o", "timeout=100", "-o", "timeout_method=thread"]
    return [*command, "-n", str(workers)] if workers else command


def start_tests(limit: float) -> Job:
    """tests/gpu, the Triton tests, and the tests of ops and evaluation on the CUDA device."""
    junit = LOGS / "tests.xml"
    junit.unlink(missing_ok=True)
    # The first choice of every autotuner is enough to be right.
    return Job("tests", test_command(junit), limit, 15, REIDFAST_AUTOTUNE="0", OMP_NUM_THREADS="2")


def finish_tests(job: Job) -> dict[str, Any]:
    stage = job.finish()
    counted = read_log(job.log.read_text(errors="replace"))
    from_junit = read_junit(LOGS / "tests.xml")
    return stage | (counted | from_junit if sum(from_junit.values()) else counted)


def start_sanitizers(limit: float) -> dict[str, Job]:
    """Small cases of every op under memcheck and racecheck; empty where there is no compute-sanitizer."""
    jobs: dict[str, Job] = {}
    if not shutil.which("compute-sanitizer"):
        return jobs
    surroundings = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "REIDFAST_AUTOTUNE": "0"}
    surroundings |= {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    for checker in ("memcheck", "racecheck"):
        # API errors that torch expects and handles are no findings; those of launches raise in Python.
        command = ["compute-sanitizer", "--tool", checker, "--error-exitcode", "99"]
        command += ["--report-api-errors", "no"] if checker == "memcheck" else []
        jobs[checker] = Job(checker, [*command, sys.executable, "tests/gpu/small_cases.py"], limit, **surroundings)
    return jobs


def finish_sanitizers(jobs: dict[str, Job]) -> dict[str, Any]:
    if not jobs:
        return {"status": "skipped", "reason": "compute-sanitizer is not installed"}
    result: dict[str, Any] = {"status": "ok"}
    for checker, job in jobs.items():
        stage = job.finish()
        text = job.log.read_text(errors="replace")
        if "Device not supported" in text or "Failed to initialize" in text:
            stage |= {"status": "skipped", "reason": "compute-sanitizer does not work on this machine"}
        stage["reached"] = text.count("ran: ")
        stage["errors"] = re.findall(r"ERROR SUMMARY: .*|RACECHECK SUMMARY: .*", text)
        if stage["status"] == "timeout" and not re.search(r"=+ (Invalid|Error: Race|.*hazard)", text):
            stage["reason"] = f"out of time after {stage['reached']} cases, nothing found in them"
        elif stage["status"] in ("failed", "timeout"):
            result["status"] = "failed"
        result[checker] = stage
    states = {result[checker]["status"] for checker in jobs}
    if result["status"] == "ok" and states != {"ok"}:
        result["status"] = "skipped" if states == {"skipped"} else "incomplete"
    return result


def start_compiling(labels: list[str], limit: float) -> list[Job]:
    """First calls of what is measured later, side by side, so that no kernel is compiled then. Times nothing."""
    jobs = []
    for group in range(GROUPS):
        for config in range(CONFIGS):
            surroundings = {"REIDFAST_AUTOTUNE": str(config), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
            surroundings |= {"OMP_NUM_THREADS": "1"}
            command = [sys.executable, str(Path(__file__).resolve()), "--first-calls", *labels[group::GROUPS]]
            jobs.append(Job(f"compile-{group}-{config}", command, limit, **surroundings))
    return jobs


def first_calls(labels: list[str]) -> int:
    """In a process of its own: our step of every entry and what torch.compile makes, once each."""
    registry = load_registry()
    only_ours = os.environ.get("REIDFAST_AUTOTUNE", "0") != "0"
    for label in labels:
        name, shape_name = label.rsplit(", ", 1)
        if only_ours and name not in TUNED:
            continue
        with contextlib.suppress(Exception):
            bench = registry[name]
            for provider, step in bench.providers(bench.shapes[shape_name], "cuda").items():
                if provider == OURS or ("compile" in provider and not only_ours):
                    with contextlib.suppress(Exception):
                        step()
            print(label, flush=True)
    return 0


def ceilings() -> dict[str, float]:
    """What this GPU can do, measured now: a copy larger than its cache (read + write), and square products."""
    import torch

    from benchmarks.harness.timing import measure

    n = 2**30  # 4 GiB each way
    source, goal = torch.empty(n, device="cuda").normal_(), torch.empty(n, device="cuda")
    copy = measure({"copy": lambda: goal.copy_(source)}, "cuda", rounds=7)["copy"]
    found = {"copy_bytes_per_s": 8.0 * n / copy["p50"]}
    found["cache_bytes"] = float(torch.cuda.get_device_properties(0).L2_cache_size)
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
    """Time of a step replayed from a CUDA graph, free of launch gaps; None where it cannot be captured.

    A step that synchronises is found out before anything is captured: a capture that fails half way leaves torch's
    random generator as if it were still going on.
    """
    import torch

    from benchmarks.harness.timing import measure

    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    except RuntimeError:
        return None
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
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
        seconds = measure({"graph": graph.replay}, "cuda", rounds=7, round_seconds=0.05)["graph"]["p50"]
        del kept
        return seconds
    except RuntimeError:
        torch.cuda.synchronize()
        return None


def is_usable() -> bool:
    """Whether this process can still use the GPU: no error that sticks, no capture that never ended."""
    import torch

    try:
        torch.rand(1, device="cuda")
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


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
LABELS = [f"{name}, {shape_name}" for name, shape_names in PLAN.items() for shape_name in shape_names]
# Entries whose kernels an autotuner chooses.
TUNED = {name for name in PLAN if name.split("_")[0] in ("search", "memory", "diverse", "rerank", "jaccard")}
TUNED |= {name for name in PLAN if name.split()[0] == "rank"}


def load_registry() -> dict[str, Any]:
    """The entries of PLAN; nothing else of benchmarks/ is imported."""
    import importlib
    import pkgutil

    sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []
    from benchmarks import entries
    from benchmarks.harness.registry import REGISTRY

    for module in pkgutil.iter_modules(entries.__path__):
        if module.name not in ("casn", "loader", "video", "video_methods"):  # training steps, images, video
            importlib.import_module(f"{entries.__name__}.{module.name}")
    return REGISTRY


def measure_entry(
    bench: Any, shape_name: str, ceiling: dict[str, float], device: str = "cuda", without: str = "nothing"
) -> dict[str, Any]:
    """One entry of the registry at one shape: times, graph replays, peak memory and share of the floor.

    Baselines whose name has ``without`` in it are left out.
    """
    import torch

    from benchmarks.harness.timing import measure

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
    cached = least_bytes < ceiling.get("cache_bytes", 0.0)  # then steps back to back may beat the floor
    ours = times[OURS]["p50"]
    return {
        "name": name,
        "mode": mode,
        "shape": shape_name,
        "sizes": sizes,
        "device": "cuda",
        "floor_s": floor,
        "fits_cache": cached,
        "floor_share": floor / min(ours, times[OURS].get("graph_p50") or ours),
        "times_s": times,
        "ratios": {n: t["p50"] / ours for n, t in times.items() if n != OURS and "p50" in t},
        "targets": {},
    }


def measure_entries(journal: Path, labels: list[str]) -> int:
    """In a process of its own: the ceilings, then entry after entry, a line of JSON in ``journal`` for each.

    Leaves with 3 where an entry has broken the GPU for this process.
    """
    registry = load_registry()

    def note(**line: Any) -> None:
        with journal.open("a") as out:
            out.write(json.dumps(line) + "\n")

    ceiling = next((entry["ceilings"] for entry in read_journal(journal) if "ceilings" in entry), None)
    if ceiling is None:
        ceiling = ceilings()
        note(ceilings=ceiling)
    for label in labels:
        name, shape_name = label.rsplit(", ", 1)
        note(begin=label)
        try:
            note(label=label, row=measure_entry(registry[name], shape_name, ceiling))
        except Exception as error:  # one broken entry must not cost the others
            note(label=label, failed=f"{type(error).__name__}: {str(error)[:300]}")
        if not is_usable():
            return 3
    return 0


def read_journal(journal: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal that another process may be writing."""
    if not journal.is_file():
        return []
    return [json.loads(text) for text in journal.read_text().splitlines(keepends=True) if text.endswith("\n")]


def grid(clock: Clock, save: Any, command: list[str] | None = None) -> dict[str, Any]:
    """PLAN on the GPU until the time is over: ceilings, rows, what failed and what was left out.

    ``save`` is called with all that is known whenever a row has come. ``command`` replaces the measuring process.
    """
    journal = LOGS / "grid.jsonl"
    LOGS.mkdir(parents=True, exist_ok=True)
    journal.unlink(missing_ok=True)
    result: dict[str, Any] = {"ceilings": {}, "rows": [], "failed": {}}
    left, read, starts = list(LABELS), 0, 0
    command = command or [sys.executable, str(Path(__file__).resolve()), "--measure"]
    while left and clock.left > 0 and starts < 8:
        surroundings = {"TORCHINDUCTOR_COMPILE_THREADS": "4"}
        job = Job(f"grid-{starts}", [*command, str(journal), *left], clock.left, **surroundings)
        starts += 1
        begun, since, hung = None, time.monotonic(), False
        while True:
            over = job.process.poll() is not None
            entries = read_journal(journal)
            for entry in entries[read:]:
                since = time.monotonic()
                if "ceilings" in entry:
                    result["ceilings"] = entry["ceilings"]
                begun = entry.get("begin", begun)
                if "label" in entry:
                    begun = None
                    left.remove(entry["label"])
                    if "row" in entry:
                        result["rows"].append(entry["row"])
                        print(line(entry["row"]), flush=True)
                    else:
                        result["failed"][entry["label"]] = entry["failed"]
                        print(f"{entry['label']}: {entry['failed']}", flush=True)
                    save(result)
            read = len(entries)
            hung = time.monotonic() - since > STALL
            if over or hung or clock.left <= 0:
                break
            time.sleep(0.2)
        job.stop()
        if begun and (over or hung):
            left.remove(begun)
            result["failed"][begun] = (
                f"took over {STALL:.0f} s" if hung else f"ended its process ({job.process.returncode})"
            )
            print(f"{begun}: {result['failed'][begun]}", flush=True)
        elif (over or hung) and not read:
            result["failed"]["start"] = job.log.read_text(errors="replace")[-500:]
            break
    result["left_out"] = left
    result["status"] = "failed" if result["failed"] or not result["rows"] else "ok"
    save(result)
    return result


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
        + ". (cached): what must be moved fits the second-level cache, and steps run back to back.",
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
            share = f"{100 * row['floor_s'] / best:.0f} %" + (" (cached)" if row.get("fits_cache") else "")
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
    parser.add_argument("--only", default=",".join(STAGES), help=f"stages, of {','.join(STAGES)}")
    parser.add_argument("--skip-build", action="store_true", help="the extension stands already")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--first-calls", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    wanted = [s for s in options.only.split(",") if s and not (s == "build" and options.skip_build)]
    if unknown := set(wanted) - set(STAGES):
        parser.error(f"expected stages of {','.join(STAGES)}, got {','.join(sorted(unknown))}")
    find_tools()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with what it has started
    if options.first_calls:
        return first_calls(options.first_calls)
    if options.measure:
        return measure_entries(Path(options.measure[0]), options.measure[1:])
    clock = Clock(options.budget)
    facts, reason = preflight()
    if reason:
        print(f"gpu-check: no GPU can be checked here: {reason}", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    report: dict[str, Any] = {"software": facts, "stages": {}, "ceilings": {}, "results": []}
    stages = report["stages"]
    print(json.dumps(facts), flush=True)
    if "build" in wanted:
        stages["build"] = build(clock)
        print(f"build: {stages['build']['status']}, {stages['build']['seconds']} s", flush=True)
        if stages["build"]["status"] != "ok":
            print(stages["build"]["tail"], flush=True)
    if stages.get("build", {"status": "ok"})["status"] == "ok":
        from benchmarks.harness.timing import environment

        report["environment"] = environment("cuda")
        write_json(options.report, report)
        if "tests" in wanted:
            limit = min(220.0 if "grid" in wanted else 400.0, clock.left)
            compiling = start_compiling(LABELS, limit) if "grid" in wanted else []
            sanitizers, job = start_sanitizers(limit), start_tests(limit)
            stages["tests"] = t = finish_tests(job)
            print(
                f"tests: {t['status']}, {t['passed']} passed, {t['failed']} failed, {t['skipped']} skipped, "
                f"{t['seconds']} s",
                *t["failures"][:60],
                sep="\n  ",
                flush=True,
            )
            write_json(options.report, report)
            stages["sanitizer"] = found = finish_sanitizers(sanitizers)
            details = [f"{n}: {found[n]['status']} {found[n].get('reason', found[n]['errors'])}" for n in sanitizers]
            print(f"sanitizer: {found['status']} {found.get('reason', '')}", *details, sep="\n  ", flush=True)
            for early in compiling:
                early.finish()
            write_json(options.report, report)
        if "grid" in wanted:

            def save(known: dict[str, Any]) -> None:
                report["ceilings"], report["results"] = known["ceilings"], known["rows"]
                stages["grid"] = {k: v for k, v in known.items() if k not in ("ceilings", "rows")}
                write_json(options.report, report)

            grid(clock, save)
            if report["results"]:
                text = table(report)
                print(text, flush=True)
                write_json(options.results / result_name(report["environment"]), report)
                (LOGS / "table.md").write_text(text)
    write_json(options.report, report)
    failed = [name for name, stage in stages.items() if stage["status"] in ("failed", "timeout")]
    print(f"gpu-check: wrote {options.report}; " + (f"failed: {', '.join(failed)}" if failed else "all stages passed"))
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
