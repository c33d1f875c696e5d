# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What the studies share: results by arm and seed, paired comparisons, Markdown tables, and the command line.

A study is a module that names its arms, runs one of them (a function of arm and seed that returns a dict), and
summarises the results. Every arm and seed leaves one JSON file, written whole; a file that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reidfast._files import write_whole
from reidfast.engine import paired_bootstrap
from reidfast.engine.compare import Difference

Run = dict[str, Any]
Show = Callable[[Run], str]
Measure = Callable[..., Run]


def keep(path: Path, content: Any, indent: int | None = None) -> None:
    """Write a JSON file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as stream:
        stream.write((json.dumps(content, indent=indent) + "\n").encode())


def keep_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write an .npz file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as stream:
        np.savez(stream, **arrays)


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @property
    def wall(self) -> float:
        """Seconds of the clock on the wall."""
        return time.perf_counter() - self._wall

    @property
    def cpu(self) -> float:
        """Seconds of the processor."""
        return time.process_time() - self._cpu


class Results:
    """The results of a study: ARM-SEED.json in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, arm: str, seed: int) -> Path:
        """The file of an arm and seed."""
        return self.folder / f"{arm}-{seed}.json"

    def hold(self, settings: dict[str, Any]) -> None:
        """Keep the settings that all runs of the folder share in settings.json; refuse others than those kept."""
        path = self.folder / "settings.json"
        kept = json.loads(path.read_text()) if path.exists() else settings
        differing = [name for name in settings if kept.get(name) != settings[name]]
        if differing:
            raise SystemExit(f"{self.folder} holds runs with other {', '.join(differing)}; choose another --out")
        keep(path, settings)

    def run(self, arm: str, seed: int, show: Show, measure: Measure, *arguments: Any) -> None:
        """`measure(*arguments)` for an arm and seed, unless its file is there, and print a line about it."""
        path = self.path(arm, seed)
        if not path.exists():
            content = {"arm": arm, "seed": seed, **measure(*arguments)}
            keep(path, content)
            print(f"{arm:<20} seed {seed}  {show(content)}", flush=True)

    def sweep(
        self,
        arms: Iterable[str],
        seeds: Iterable[int],
        show: Callable[[Run], str],
        measure: Callable[..., Run],
        *more: Any,
    ) -> None:
        """`measure(arm, seed, *more)` for all, seed by seed, so that a table over all arms is there early."""
        arms = list(arms)
        for seed in seeds:
            for arm in arms:
                self.run(arm, seed, show, measure, arm, seed, *more)

    def read(self) -> dict[str, list[Run]]:
        """The finished runs by arm."""
        runs: dict[str, list[Run]] = {}
        for path in sorted(self.folder.glob("*-*.json")):
            content = json.loads(path.read_text())
            runs.setdefault(content["arm"], []).append(content)
        return runs


def compare(first: ArrayLike, second: ArrayLike, ids: ArrayLike) -> Difference:
    """Paired bootstrap over identities of `second - first`, [seeds, queries] each, averaged over their seeds."""
    return paired_bootstrap(np.mean(np.asarray(first), 0), np.mean(np.asarray(second), 0), ids)


def bootstrap(
    a: NDArray[Any], b: NDArray[Any], ids: ArrayLike, statistic: Callable[[Any], Any], draws: int = 4000
) -> tuple[float, float, float]:
    """statistic(means of b) - statistic(means of a) and its 95 % interval over drawn identities; a, b (Q, columns)."""
    valid = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    who, index = np.unique(np.asarray(ids)[valid], return_inverse=True)
    both = np.concatenate([a, b, np.ones((len(a), 1))], 1)[valid]
    total = np.stack([np.bincount(index, c, len(who)) for c in both.T], 1)  # (identities, columns)
    times = np.random.default_rng(0).multinomial(len(who), np.full(len(who), 1 / len(who)), draws)

    def difference(sums: Any) -> Any:
        means = sums[..., :-1] / sums[..., -1:]
        return statistic(means[..., a.shape[1] :]) - statistic(means[..., : a.shape[1]])

    low, high = np.quantile(difference(times @ total), [0.025, 0.975])
    return float(difference(total.sum(0))), float(low), float(high)


def ordered(good: NDArray[Any], bad: NDArray[Any]) -> float:
    """Share of (good, bad) pairs in which the good one scores higher; equal ones count half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.r_[good, bad])[: len(good)]
    return float((ranks.sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad)))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean, and the standard deviation where there are several."""
    more = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{more}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return ["| " + " | ".join(header) + " |", "|---" * len(header) + "|", *("| " + " | ".join(r) + " |" for r in rows)]


def without_folders(value: Any) -> Any:
    """Settings with file names where they had paths."""
    if isinstance(value, dict):
        return {k: without_folders(v) for k, v in value.items()}
    return Path(value).name if isinstance(value, str) and "/" in value else value


def argument(*names: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What a command takes, in `argparse`'s terms."""
    return names, options


def setting(text: str) -> str:
    """KEY=VALUE, with or without dashes, as `reidfast.engine.config.parse` takes it."""
    return f"--{text.removeprefix('--')}"


OUT = argument("--out", type=Path, required=True, help="folder of the results")
JSON = argument("--json", type=Path, metavar="FILE", help="keep the summary")
SEEDS = argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
SET = argument("--set", nargs="*", type=setting, default=[], metavar="KEY=VALUE", help="settings of all arms")
KEEP = argument("--keep", action="store_true", help="keep checkpoints and weights of finished runs")
TRAINING = (OUT, SEEDS, SET, KEEP)


def choose(arms: Iterable[str]) -> Any:
    """--arms, of these; all of them unless given."""
    arms = list(arms)
    return argument("--arms", nargs="*", default=arms, choices=arms, metavar="ARM", help=", ".join(arms))


class Study:
    """The command line of a study: `python -m studies.NAME COMMAND ...`.

    Args:
        name: Of its module.
        description: The module's docstring.
    """

    def __init__(self, name: str, description: str) -> None:
        kind = argparse.RawDescriptionHelpFormatter
        self._parser = argparse.ArgumentParser(f"python -m studies.{name}", None, description, formatter_class=kind)
        self._commands = self._parser.add_subparsers(dest="command", required=True)

    def command(self, help: str, *arguments: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Make a function of the parsed options a command of its name."""

        def add(function: Callable[..., None]) -> Callable[..., None]:
            parser = self._commands.add_parser(function.__name__, help=help, description=help)
            for names, options in arguments:
                parser.add_argument(*names, **options)
            parser.set_defaults(function=function)
            return function

        return add

    def main(self, arguments: list[str] | None = None) -> None:
        """Run the command that the arguments name."""
        options = self._parser.parse_args(arguments)
        options.function(options)
