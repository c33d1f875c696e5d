# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""tools/gpu_check.py up to the point where it needs a GPU, and its report from made-up measurements."""

import doctest
import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "tools" / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def made_up(gpu_check):
    """A report with invented numbers: never a measurement."""
    ceilings = {
        "copy_bytes_per_s": 4e12,
        "mm_bfloat16_flop_per_s": 8e14,
        "mm_tf32_flop_per_s": 4e14,
        "mm_float32_flop_per_s": 6e13,
    }
    times = {
        "reidfast": {"p20": 1.9e-4, "p50": 2e-4, "p80": 2.1e-4, "peak_bytes": 2**20, "graph_p50": 1.6e-4},
        "eager": {"p20": 4e-4, "p50": 5e-4, "p80": 6e-4, "peak_bytes": 3 * 2**20, "graph_p50": None},
        "torch.compile": {"failed": "RuntimeError: made up"},
    }
    row = gpu_check.make_row("made-up op", "forward", "some", {"n": 1}, 4e8, 1e6, times, ceilings)
    environment = {
        "device": "NVIDIA Made-Up 9", "sm": "9.0", "torch": "0", "cuda": "0", "date": "2000-01-01 00:00", "commit": "0",
        "processor": "none", "threads": 1, "isa": "none", "load_1min": 0,
    }  # fmt: skip
    return {"environment": environment, "ceilings": ceilings, "results": [row]}


def test_row(made_up):
    (row,) = made_up["results"]
    assert row["floor_s"] == pytest.approx(1e-4)  # 4e8 bytes at 4e12 per second
    assert row["floor_share"] == pytest.approx(1e-4 / 1.6e-4)  # the better of launched and replayed
    assert row["ratios"] == {"eager": pytest.approx(2.5)}


def test_table(gpu_check, made_up):
    text = gpu_check.table(made_up)
    assert "copy 4.00 TB/s" in text and "bfloat16 800 TFLOP/s" in text
    assert "| reidfast | 200 | 160 | 62 % | 1.0 |  |" in text
    assert "| eager | 500 | - | 20 % | 3.0 | 2.50x |" in text
    assert "| torch.compile | failed: RuntimeError: made up" in text


def test_readme_figures_can_be_made_from_a_report(made_up):
    spec = importlib.util.spec_from_file_location("figures", ROOT / "tools" / "figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    assert "2.50x" in figures.table(made_up)


@pytest.fixture
def registry():
    from benchmarks.registry import load_all

    return load_all()


def test_plan_names_entries_that_run_on_a_gpu(gpu_check, registry):
    for name, shapes in gpu_check.PLAN.items():
        assert "cuda" in registry[name].devices and set(shapes) <= set(registry[name].shapes), name


@pytest.mark.slow
def test_the_grid_runs_on_the_cpu(gpu_check, made_up, registry, monkeypatch):
    """Every entry of the plan at its tiny shape, so that the first run on a GPU meets no silly error."""
    from benchmarks import timing

    quick = functools.partial(timing.measure, device="cpu")
    monkeypatch.setattr(timing, "measure", lambda steps, device, **_: quick(steps, rounds=1, round_seconds=0))
    rows = []
    for name in gpu_check.PLAN:
        bench = registry[name]
        if "cpu" in bench.devices and "tiny" in bench.shapes:
            rows.append(gpu_check.measure_entry(bench, "tiny", made_up["ceilings"], "cpu", without="compile"))
            assert "p50" in rows[-1]["times_s"]["reidfast"]
        else:  # a GPU's alone: the baselines
            for provider, step in bench.providers(bench.shapes["tiny"], "cpu").items():
                if provider != "reidfast":
                    step()
    assert len(rows) > 15
    report = made_up | {"results": rows}
    text = gpu_check.table(report)
    assert all(row["name"] in text and gpu_check.line(row) for row in rows)


def test_what_the_grid_has_no_time_for_is_named(gpu_check, made_up):
    stage, rows = gpu_check.grid(gpu_check.Clock(1), made_up["ceilings"], reserve=90)
    assert rows == [] and len(stage["left_out"]) == sum(map(len, gpu_check.PLAN.values()))


def test_the_gpu_tests_are_found(gpu_check):
    """What the check selects: the tests of ops, evaluation and Triton on a device, none that emulates one."""
    command = gpu_check.test_command(Path("none.xml"))
    command = command[: command.index("-n")] if "-n" in command else command
    done = subprocess.run([*command, "--collect-only"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    for wanted in ("test_evaluation_cuda.py", "test_ops_cuda.py", "triton/test_ranking.py", "triton/test_memory.py"):
        assert wanted in done.stdout
    assert "cuda_emu" not in done.stdout


def test_files(gpu_check, made_up, tmp_path):
    assert gpu_check.result_name(made_up["environment"]) == "made-up-9-2000-01-01.json"
    gpu_check.write_json(tmp_path / "deep" / "report.json", made_up)
    assert json.loads((tmp_path / "deep" / "report.json").read_text()) == made_up
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.json"]


def test_stage_keeps_its_log_and_its_limit(gpu_check, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "LOGS", tmp_path)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    ok = gpu_check.run("fine", [sys.executable, "-c", "print('words')"], 60)
    assert ok["status"] == "ok" and "words" in ok["tail"] and (tmp_path / "fine.log").is_file()
    assert gpu_check.run("bad", [sys.executable, "-c", "raise SystemExit(3)"], 60)["status"] == "failed"
    assert gpu_check.run("slow", [sys.executable, "-c", "import time; time.sleep(60)"], 0.5)["status"] == "timeout"


def test_doctests(gpu_check):
    assert doctest.testmod(gpu_check).failed == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line():
    done = subprocess.run([sys.executable, "tools/gpu_check.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("gpu-check: no GPU can be checked here: torch ")
