# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Training runs whose scores are committed: a run of `reidfast train`, then one JSON file of what it reached.

    python -m studies.training run market751_mini --weights MOBILENET.pt --out runs/mini

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
from studies._study import Study, argument, keep

HERE = Path(__file__).resolve().parent
study = Study("training", __doc__)
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


@study.command(
    "train and write the result",
    argument("name", choices=sorted(path.stem for path in (HERE / "configs").glob("*.yaml"))),
    argument("--weights", required=True, help="of the backbone"),
    argument("--out", type=Path, help="folder of the run (default: runs/NAME)"),
    argument("--threads", type=int, default=2),
    argument("--result", type=Path, help="default: studies/results/training-NAME.json"),
    argument("settings", nargs="*", help="further settings of reidfast train, such as --seed=1, after --"),
)
def run(options: argparse.Namespace) -> None:
    """`reidfast train`, then one file."""
    out = options.out or Path("runs") / options.name
    shared = ["train", "strong_baseline", "--config", os.path.relpath(HERE / "configs" / f"{options.name}.yaml")]
    given = [f"--model.weights={options.weights}", f"--out={out}", "--resume=true", *options.settings]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    subprocess.run([sys.executable, "-m", "reidfast", *shared, *given], check=True, env=environment)
    shown = ["reidfast", *shared, f"--model.weights={Path(options.weights).name}", *options.settings]
    result = report(options.name, shown, out)
    result["environment"]["threads"] = options.threads
    target = options.result or HERE / "results" / f"training-{options.name}.json"
    keep(target, result, indent=1)
    last = result["history"][-1]
    print(f"{target}: R1 {100 * last['rank1']:.1f}, mAP {100 * last['mAP']:.1f}, {result['seconds']['wall']:.0f} s")


if __name__ == "__main__":
    study.main()
