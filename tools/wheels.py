# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Builds wheels, and tests them where they are installed.

    python tools/wheels.py build [--pythons python3.10 python3.13 ...] [--out dist]
    python tools/wheels.py test [--wheels dist] [--environments PYTHON:TORCH ... | PATH/bin/python ...] [--all]

``build`` makes the native libraries once, with this Python's torch headers, and packs them for this and every other
Python: the libraries know no Python and no torch version. CUDA is built where nvcc is found (REIDFAST_CUDA).

``test`` installs the wheel that fits into each environment: a new one for PYTHON:TORCH ("python3.13:2.15.0"), or
beside the torch that PATH/bin/python already has. There, outside the checkout and without a compiler on PATH,
``reidfast info`` must call every op native, and the tests of ops (with ``--all`` those of evaluation, too) must pass.
Prints a table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD_TOOLS = ["setuptools>=77", "wheel", "cmake>=3.25,<5", "ninja", "pybind11>=2.12"]
MARKERS = ("gpu", "triton", "data", "slow", "network")
TEST_TOOLS = ["pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "numpy", "scipy", "pillow"]


def run(command: list, **options) -> subprocess.CompletedProcess:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"wheels: {' '.join(map(str, command))} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


def wheel_with(python: str, out: Path, **environment: str) -> Path:
    before = set(out.glob("*.whl"))
    command = [python, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", out, ROOT]
    started = time.time()
    run(command, env={**os.environ, **environment})
    made = [path for path in out.glob("*.whl") if path not in before or path.stat().st_mtime >= started]
    return max(made, key=lambda path: path.stat().st_mtime)


def build(options: argparse.Namespace) -> None:
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    wheels = [wheel_with(sys.executable, out)]
    with tempfile.TemporaryDirectory() as folder:
        libraries = Path(folder) / "libraries"
        libraries.mkdir()
        with zipfile.ZipFile(wheels[0]) as archive:
            for name in archive.namelist():
                if re.fullmatch(r"reidfast/libreidfast\w*\.so", name):
                    (libraries / Path(name).name).write_bytes(archive.read(name))
        for number, python in enumerate(options.pythons):
            environment = Path(folder) / f"python{number}"
            run([python, "-m", "venv", environment])
            run([environment / "bin" / "pip", "install", "--quiet", *BUILD_TOOLS])
            path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
            surroundings = {"REIDFAST_LIBRARIES": str(libraries), "PATH": path}
            surroundings["REIDFAST_BUILD_DIR"] = str(Path(folder) / f"build{number}")
            wheels.append(wheel_with(str(environment / "bin" / "python"), out, **surroundings))
    for wheel in wheels:
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MB, libreidfast.so {digest(wheel)}")


def digest(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return hashlib.sha256(archive.read("reidfast/libreidfast.so")).hexdigest()[:12]


def wheel_for(python: Path, folder: Path) -> Path:
    tag = run(
        [python, "-c", "import sys; print(sys.implementation.cache_tag.replace('cpython-', 'cp'))"]
    ).stdout.strip()
    fitting = sorted(folder.glob(f"reidfast-*-{tag}-*.whl"), key=lambda path: path.stat().st_mtime)
    if not fitting:
        sys.exit(f"wheels: expected a wheel for {tag} in {folder}, got none; python tools/wheels.py build")
    return fitting[-1]


def test_in(spec: str, options: argparse.Namespace, work: Path) -> dict[str, str]:
    """Install the wheel in one environment and test it there; the row of the table."""
    site = work / "site"
    if ":" in spec:
        name, torch = spec.split(":")
        run([name, "-m", "venv", work / "venv"])
        python = work / "venv" / "bin" / "python"
        run([python, "-m", "pip", "install", "--quiet", f"torch=={torch}"])
    else:
        python = Path(spec).absolute()
    wheel = wheel_for(python, options.wheels)
    pip = [python, "-m", "pip", "install", "--quiet", "--target", site]
    started = time.perf_counter()
    run([*pip, "--no-deps", wheel])
    installed = time.perf_counter() - started
    run([*pip, *TEST_TOOLS])

    tools = work / "bin"  # no compiler on PATH
    tools.mkdir()
    for tool in ("bash", "env", "uname", "sh"):
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CC", "CXX", "VIRTUAL_ENV")}
    environment |= {"PYTHONPATH": str(site), "PATH": str(tools)}
    first_rank = (
        "import time; t = time.perf_counter()\n"
        "import torch; u = time.perf_counter()\n"
        "import reidfast; v = time.perf_counter()\n"
        "x = torch.randn(60, 16); ids = torch.arange(60) % 7\n"
        "reidfast.evaluation.rank(x[:20], x[20:], ids[:20], ids[20:]); w = time.perf_counter()\n"
        "print(v - u, w - t, torch.__version__, reidfast.__file__)"
    )
    added, first, version, file = run([python, "-c", first_rank], cwd=work, env=environment).stdout.split()
    assert Path(file).is_relative_to(site), f"expected reidfast from the wheel, got {file}"
    facts = json.loads(run([python, "-m", "reidfast", "info", "--json"], cwd=work, env=environment).stdout)
    slow = [op for op, rows in facts["backends"].items() if rows["cpu"]["serves"] != "native"]
    if slow or not facts["build"]["module"]:
        sys.exit(f"wheels: expected every op native and reidfast._C beside torch {version}, got {slow or 'no _C'}")

    folders = ["ops", *(["evaluation"] if options.all else [])]
    for name in ("conftest.py", "_support", "ops", "evaluation"):
        source = ROOT / "tests" / name
        if source.is_dir():
            shutil.copytree(source, work / "tests" / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, work / "tests" / name)
    (work / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n" + "".join(f"    {name}: see pyproject.toml\n" for name in MARKERS)
    )
    command = [python, "-m", "pytest", "-q", "-m", "not slow and not triton", "-p", "no:cacheprovider"]
    command += [f"tests/{folder}" for folder in folders]
    done = subprocess.run([str(c) for c in command], cwd=work, env=environment, capture_output=True, text=True)
    summary = done.stdout.strip().splitlines()[-1].strip("= ")
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    with open(site / "reidfast" / "libreidfast.so", "rb") as library:
        sha = hashlib.sha256(library.read()).hexdigest()[:12]
    return {
        "Python": facts["versions"]["python"],
        "torch": version,
        "library": sha,
        "installed in": f"{installed:.1f} s",
        "import adds": f"{float(added):.2f} s",
        "first rank after": f"{float(first):.1f} s",
        "native ops": f"{len(facts['backends'])} of {len(facts['backends'])}",
        "tests": summary if done.returncode == 0 else f"FAILED: {summary}",
    }


def test(options: argparse.Namespace) -> int:
    rows = []
    for spec in options.environments:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "tests").mkdir()
            rows.append(test_in(spec, options, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")
    if len({row["library"] for row in rows}) > 1:
        sys.exit("wheels: expected one library for all, got several")
    return 1 if any(row["tests"].startswith("FAILED") for row in rows) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="build wheels")
    builder.add_argument("--pythons", nargs="*", default=[], help="further Pythons, beside this one")
    builder.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the wheels")
    tester = commands.add_parser("test", help="install wheels elsewhere and test them")
    tester.add_argument("--wheels", type=Path, default=ROOT / "dist", help="folder of the wheels")
    tester.add_argument(
        "--environments", nargs="+", default=[sys.executable], help="PYTHON:TORCH, or a Python with torch"
    )
    tester.add_argument("--all", action="store_true", help="the tests of evaluation, too")
    options = parser.parse_args()
    if options.command == "build":
        build(options)
        return 0
    return test(options)


if __name__ == "__main__":
    sys.exit(main())
