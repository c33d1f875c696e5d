# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""tools/gpu_check.py up to the point where it needs a GPU, and its report from made-up measurements."""

import doctest
import functools
import importlib.util
import json
import os
import subprocess
import sys
import time
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
    from benchmarks.harness.registry import load_all

    return load_all()


def test_plan_names_entries_that_run_on_a_gpu(gpu_check, registry):
    for name, shapes in gpu_check.PLAN.items():
        assert "cuda" in registry[name].devices and set(shapes) <= set(registry[name].shapes), name


@pytest.mark.slow
def test_the_grid_runs_on_the_cpu(gpu_check, made_up, registry, monkeypatch):
    """Every entry of the plan at its tiny shape, so that the first run on a GPU meets no silly error."""
    from benchmarks.harness import timing

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


# Stands for the process that measures: notes down what it was asked for, as its first argument says it goes.
CHILD = """
import json, os, pathlib, sys, time
how, journal, *labels = sys.argv[1:]
row = json.loads(pathlib.Path(__file__).with_name("row.json").read_text())
def note(**line):
    with open(journal, "a") as out:
        out.write(json.dumps(line) + chr(10))
if how == "dead":
    sys.exit("no context")
if not os.path.exists(journal):
    note(ceilings={"copy_bytes_per_s": 1.0})
for n, label in enumerate(labels):
    note(begin=label)
    if how == "breaks" and label == "two, a":
        os._exit(7)
    if how == "hangs" and label == "two, a":
        time.sleep(60)
    if how == "raises" and label == "two, a":
        note(label=label, failed="RuntimeError: made up")
        sys.exit(3)
    note(label=label, row=row | {"name": label})
"""


@pytest.fixture
def small_grid(gpu_check, made_up, monkeypatch, tmp_path):
    """How the child goes -> the grid's result, over three entries."""
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "row.json").write_text(json.dumps(made_up["results"][0]))
    monkeypatch.setattr(gpu_check, "LOGS", tmp_path)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "LABELS", ["one, a", "two, a", "three, a"])

    def run(how, seconds=60.0):
        saved = []
        command = [sys.executable, str(tmp_path / "child.py"), how]
        result = gpu_check.grid(gpu_check.Clock(seconds), lambda r: saved.append(len(r["rows"])), command)
        assert saved[-1] == len(result["rows"]) and saved == sorted(saved)
        return result

    return run


def test_the_grid_measures_every_entry(small_grid):
    result = small_grid("well")
    assert [row["name"] for row in result["rows"]] == ["one, a", "two, a", "three, a"]
    assert result["status"] == "ok" and result["ceilings"] and not result["left_out"]


@pytest.mark.parametrize("how,words", [("breaks", "ended its process (7)"), ("raises", "made up")])
def test_an_entry_that_breaks_the_gpu_costs_no_other(small_grid, how, words):
    result = small_grid(how)
    assert [row["name"] for row in result["rows"]] == ["one, a", "three, a"]
    assert result["status"] == "failed" and words in result["failed"]["two, a"]


def test_an_entry_that_hangs_costs_no_other(small_grid, gpu_check, monkeypatch):
    monkeypatch.setattr(gpu_check, "STALL", 2.0)
    result = small_grid("hangs")
    assert [row["name"] for row in result["rows"]] == ["one, a", "three, a"]
    assert result["failed"] == {"two, a": "took over 2 s"}


def test_what_the_grid_has_no_time_for_is_named(small_grid):
    result = small_grid("hangs", seconds=3.0)
    assert result["left_out"] == ["two, a", "three, a"] and result["failed"] == {} and len(result["rows"]) == 1
    assert small_grid("well", seconds=0.0)["left_out"] == ["one, a", "two, a", "three, a"]


@pytest.mark.parametrize("broken", [False, True], ids=["well", "tests fail"])
def test_the_whole_check(small_grid, gpu_check, made_up, monkeypatch, tmp_path, capsys, broken):
    """From the first stage to the last, every process replaced by a small one."""
    from benchmarks.harness import timing

    words = "[gw0] FAILED tests/a.py::x[1]" if broken else "[gw0] PASSED tests/a.py::x[1]"
    short = lambda name, text, status=0: gpu_check.Job(  # noqa: E731
        name, [sys.executable, "-c", f"print({text!r}); raise SystemExit({status})"], 60
    )
    real, child = gpu_check.grid, [sys.executable, str(tmp_path / "child.py"), "raises" if broken else "well"]
    monkeypatch.setattr(gpu_check, "preflight", lambda: ({"torch": "0"}, ""))
    monkeypatch.setattr(gpu_check, "build", lambda clock: {"status": "ok", "seconds": 1.0, "tail": ""})
    monkeypatch.setattr(gpu_check, "start_tests", lambda limit: short("tests", words, int(broken)))
    monkeypatch.setattr(gpu_check, "start_sanitizers", lambda limit: {"memcheck": short("memcheck", "ran: a")})
    monkeypatch.setattr(gpu_check, "start_compiling", lambda labels, limit: [short("compile", "")])
    monkeypatch.setattr(gpu_check, "grid", lambda clock, save: real(clock, save, child))
    monkeypatch.setattr(timing, "environment", lambda device: made_up["environment"])
    ceilings = json.dumps(made_up["ceilings"])
    (tmp_path / "child.py").write_text(CHILD.replace('{"copy_bytes_per_s": 1.0}', ceilings))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(gpu_check.signal, "signal", lambda *_: None)
    status = gpu_check.main(["--report", str(tmp_path / "report.json"), "--results", str(tmp_path / "results")])
    report = json.loads((tmp_path / "report.json").read_text())
    said = capsys.readouterr().out
    assert status == int(broken) and len(report["results"]) == 3 - broken
    assert report["stages"]["sanitizer"]["status"] == "ok" and report["stages"]["tests"]["passed"] == 1 - broken
    assert ("failed: tests, grid" in said and "tests/a.py::x[1]" in said) == broken
    assert json.loads((tmp_path / "results" / "made-up-9-2000-01-01.json").read_text()) == report
    assert "| reidfast |" in (tmp_path / "table.md").read_text()


def test_a_grid_that_cannot_start_says_why(small_grid):
    assert "no context" in small_grid("dead")["failed"]["start"]


def test_a_first_call_that_compiles_is_no_measurement(monkeypatch):
    """On CUDA the first call loads, compiles and chooses: it may be longer than the whole budget."""
    from benchmarks.harness import timing

    calls = []

    def step():
        calls.append(None)
        time.sleep(0.3 if len(calls) == 1 else 0.0)

    monkeypatch.setattr(timing, "sync", lambda device: None)
    monkeypatch.setattr(timing, "time_once", lambda step, device, inner: 1e-3)
    assert timing.measure({"x": step}, "cuda", budget=0.2)["x"]["p50"] == 1e-3
    calls.clear()
    assert timing.measure({"x": step}, "cpu", budget=0.2)["x"]["p50"] > 0.2  # there a long step counts at once


def test_the_commit_can_be_told(monkeypatch, tmp_path):
    from benchmarks.harness import timing

    monkeypatch.setenv("REIDFAST_COMMIT", "abc1234")
    assert timing.environment()["commit"] == "abc1234"
    monkeypatch.delenv("REIDFAST_COMMIT")
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert timing.environment()["commit"] == ""


def test_a_run_that_was_cut_off_is_counted_from_its_log(gpu_check, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "LOGS", tmp_path)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import time\ndef test_a(): pass\ndef test_b(): assert 0\ndef test_c(): time.sleep(60)\n"
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "test_it.py").rename(tmp_path / "tests" / "test_it.py")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-p",
        "no:cacheprovider",
        "tests",
        f"--junitxml={tmp_path}/tests.xml",
    ]
    stage = gpu_check.finish_tests(gpu_check.Job("tests", command, 6.0, 15))
    assert stage["status"] == "timeout" and stage["passed"] == 1
    assert stage["failures"] == ["tests/test_it.py::test_b"]


def test_what_the_sanitizer_says(gpu_check, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "LOGS", tmp_path)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)

    def say(name, text, end=""):
        return gpu_check.Job(name, [sys.executable, "-c", f"print({text!r}, flush=True); {end}"], 3.0)

    slow = "import time; time.sleep(60)"
    jobs = {"memcheck": say("memcheck", "ran: a"), "racecheck": say("racecheck", "ran: a", slow)}
    found = gpu_check.finish_sanitizers(jobs)
    assert found["status"] == "incomplete" and found["racecheck"]["reached"] == 1
    jobs = {"memcheck": say("memcheck", "========= Invalid __global__ read of size 4 bytes", slow)}
    assert gpu_check.finish_sanitizers(jobs)["status"] == "failed"
    jobs = {"memcheck": say("memcheck", "Device not supported " + 3000 * "x", "raise SystemExit(99)")}
    assert gpu_check.finish_sanitizers(jobs)["status"] == "skipped"
    assert gpu_check.finish_sanitizers({})["status"] == "skipped"


def test_the_gpu_tests_are_found(gpu_check, tmp_path):
    """What the check selects: the tests of ops, evaluation and Triton on a device, none that emulates one."""
    command = gpu_check.test_command(tmp_path / "none.xml")
    command = command[: command.index("-n")] if "-n" in command else command
    done = subprocess.run([*command, "-qq", "--collect-only"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    for wanted in ("test_evaluation_cuda.py", "test_ops_cuda.py", "triton/test_ranking.py", "triton/test_memory.py"):
        assert wanted in done.stdout
    assert "cuda_emu" not in done.stdout and "compiles_to_machine_code" not in done.stdout


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


def test_nothing_outlives_an_interrupted_check(tmp_path):
    source = f"""
import runpy, sys, time
check = runpy.run_path({str(ROOT / "tools" / "gpu_check.py")!r})
check["Job"].__init__.__globals__["LOGS"] = __import__("pathlib").Path({str(tmp_path)!r})
job = check["Job"]("sleeper", [sys.executable, "-c", "import time; time.sleep(60)"], 60)
print(job.process.pid, flush=True)
raise KeyboardInterrupt
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_doctests(gpu_check):
    assert doctest.testmod(gpu_check).failed == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line():
    done = subprocess.run([sys.executable, "tools/gpu_check.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("gpu-check: no GPU can be checked here: torch ")
