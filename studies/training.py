# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Training runs whose scores are committed: a run of `reidfast train`, then one JSON file of what it reached.

    python -m studies.training market751_mini --weights MOBILENET.pt --out runs/mini

Settings are in studies/configs/NAME.yaml. A run that was stopped goes on where it was; its seconds are
those of all its starts, evaluations included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import timing
from reidfast._files import write_whole

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
# What the project wants of a run, in per cent.
WANTED = {
    "market751_mini": {"rank1": 65.0, "mAP": 40.0, "minutes": 20},
    "market751_holdout": {"rank1": 80.3, "mAP": 60.5, "minutes": 60},
}


def report(name: str, command: list[str], out: Path) -> dict[str, Any]:
    """What is committed: scores, settings, command, machine, seconds."""
    metrics = json.loads((out / "metrics.json").read_text())
    config = metrics["config"]
    config.pop("out")
    if config["model"].get("weights"):
        config["model"]["weights"] = Path(config["model"]["weights"]).name
    config["data"].pop("root", None)
    return {
        "training": name,
        "command": " ".join(command),
        "before": metrics["before"],
        "history": metrics["history"],
        "wanted": WANTED.get(name, {}),
        "seconds": metrics["seconds"],
        "environment": timing.environment("cpu"),
        "config": config,
    }


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m studies.training", description=__doc__)
    parser.add_argument("name", choices=sorted(path.stem for path in (HERE / "configs").glob("*.yaml")))
    parser.add_argument("--weights", required=True, help="of the backbone")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--result", type=Path, help="default: studies/results/training-NAME.json")
    parser.add_argument("settings", nargs="*", help="further settings of reidfast train, such as --seed=1, after --")
    args = parser.parse_args(arguments)
    out = args.out or Path("runs") / args.name
    config = HERE / "configs" / f"{args.name}.yaml"
    shared = ["train", "strong_baseline", "--config", os.path.relpath(config)]
    given = [f"--model.weights={args.weights}", f"--out={out}", "--resume=true", *args.settings]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    subprocess.run([sys.executable, "-m", "reidfast", *shared, *given], check=True, env=environment)
    said = ["reidfast", *shared, f"--model.weights={Path(args.weights).name}", *args.settings]
    result = report(args.name, said, out)
    result["environment"]["threads"] = args.threads
    place = args.result or RESULTS / f"training-{args.name}.json"
    with write_whole(place) as stream:
        stream.write((json.dumps(result, indent=1) + "\n").encode())
    last = result["history"][-1]
    print(f"{place}: R1 {100 * last['rank1']:.1f}, mAP {100 * last['mAP']:.1f}, {result['seconds']['wall']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
