# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Arguments that several subcommands share, and what they stand for."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reidfast.evaluation import METRICS

__all__: list[str] = []


def add_command(subparsers: Any, name: str, run: Any, help: str, **options: Any) -> argparse.ArgumentParser:
    """A subcommand with the options that all have."""
    parser = subparsers.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", **options)
    parser.set_defaults(run=run)
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    return parser


def add_data(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """`--data`, `--root` and their options."""
    group = parser.add_argument_group("data set")
    group.add_argument(
        "--data", metavar="NAME", required=required, help="name of a data set (reidfast data list), a .json or a .csv"
    )
    group.add_argument(
        "--root", metavar="FOLDER", help="where the data sets, or the images, are (default: REIDFAST_DATA)"
    )
    group.add_argument(
        "--data-option", metavar="KEY=VALUE", action="append", default=[], help="option of the reader; may be repeated"
    )


def add_model(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """`--model`, `--weights` and how images are prepared."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="NAME",
        required=required,
        help="one of: reidfast info --models; or a run: its folder, a .ckpt, or weights with card.json beside them",
    )
    group.add_argument("--weights", metavar="FILE", help=".npz, .safetensors, .pt or .pth; without it: random weights")
    group.add_argument("--not-strict", action="store_true", help="take the weights that fit and leave the others")
    group.add_argument(
        "--model-option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="such as last_stride=2; may be repeated",
    )
    group.add_argument("--size", type=size, metavar="HxW", help="of the input (default: the run's, else 256x128)")
    group.add_argument("--filter", help="resize filter (default: the run's, else bilinear)")
    group.add_argument("--flip", action="store_true", help="average with the feature of the mirrored image")
    group.add_argument("--batch", type=positive, default=64, metavar="N", help="images at a time (default: 64)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    group.add_argument("--dtype", default="float32", help="of the features kept: float32 or float16")
    group.add_argument("--workers", type=positive, metavar="N", help="threads that decode images")
    add_threads(group)


def add_threads(parser: Any) -> None:
    """`--threads`."""
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads of torch")


def add_ranking(parser: argparse.ArgumentParser) -> None:
    """`--metric` and the camera rule."""
    parser.add_argument("--metric", default="cosine", help=f"{', '.join(METRICS)} (default: cosine)")
    parser.add_argument(
        "--no-camera-rule",
        action="store_true",
        help="keep gallery images of the query's own identity and camera (the rule leaves them out)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def size(text: str) -> tuple[int, int]:
    """`256x128` -> (256, 128)."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or min(int(match[1]), int(match[2])) < 1:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 256x128, got {text!r}")
    return int(match[1]), int(match[2])


def positive(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def key_values(pairs: Iterable[str], flag: str) -> dict[str, Any]:
    """`["a=1", "b=x"]` -> `{"a": 1, "b": "x"}`: numbers, true, false and null are read as such."""
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"{flag}: expected KEY=VALUE, got {pair!r}")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return values


def set_threads(args: argparse.Namespace) -> None:
    """Obey `--threads`."""
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)


def load_data(args: argparse.Namespace, *, search: bool = False) -> Any:
    """The data set that the arguments name; with `search`, person-search sets too."""
    from reidfast import data

    options = key_values(args.data_option, "--data-option")
    try:
        if args.data in data.list_search_datasets():
            if not search:
                raise ValueError(
                    f"{args.data} is a set of whole images for person search, which this command is not for"
                )
            return data.load_search(args.data, args.root, **options)
        return data.load_dataset(args.data, args.root, **options)
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise ValueError(f"--data-option: {args.data} does not take these options: {error}") from error


def build_model(args: argparse.Namespace) -> Any:
    """The model that the arguments name; says so where its parameters are random.

    Where they leave `--size` and `--filter` open, these are set: to those of the run, else to the usual ones.
    """
    import torch

    from reidfast.models import create_model, is_trained, list_models, load_trained

    if args.weights and not args.model:
        raise ValueError("--weights: expected --model beside it, got none")
    card: dict[str, Any] = {}
    if args.model not in list_models() and is_trained(args.model):
        if args.weights or args.model_option or args.not_strict:
            raise ValueError(
                f"--model: {args.model} is a run, whose card says all; leave out the model's other options"
            )
        model, card, _ = load_trained(args.model)
    else:
        if not args.weights and looks_like_a_path(args.model):
            raise FileNotFoundError(f"--model: expected the name of a model or a run, got {args.model}: no such file")
        torch.manual_seed(0)
        options = key_values(args.model_option, "--model-option")
        model = create_model(args.model, weights=args.weights, strict=not args.not_strict, **options)
        if not args.weights and any(True for _ in model.parameters()):
            print(f"note: no --weights: {args.model} has random parameters (seed 0)", file=sys.stderr)
    if args.size is None:
        args.size = tuple(card.get("size") or (256, 128))
    if args.filter is None:
        args.filter = card.get("filter") or "bilinear"
    return model


def looks_like_a_path(name: str) -> bool:
    """Whether a name cannot be a model's."""
    return Path(name).suffix in (".ckpt", ".safetensors", ".pt", ".pth", ".npz") or "/" in name.removeprefix("timm:")


EXTRACT_OPTIONS = ("size", "filter", "batch", "device", "dtype", "flip", "workers")


def run_extract(
    args: argparse.Namespace, data: Any, out: Path | None, *, group: Any = None, overwrite: bool = False
) -> Any:
    """Features of the query and gallery (and, for `--splits`, other) images; `group`: processes that share the work."""
    from reidfast.engine import extract

    from ._launched import extract_together

    names = getattr(args, "splits", None) or [n for n in ("query", "gallery") if len(data.splits[n])]
    if not names and len(data.train):
        names = ["train"]
    tables = {name: data.splits[name] for name in names}
    common: dict[str, Any] = {"meta": origin(args, data, tables), "show_progress": not getattr(args, "quiet", False)}

    def prepare() -> tuple[Any, dict[str, Any]]:
        model = build_model(args)
        return model, {name: getattr(args, name) for name in EXTRACT_OPTIONS}

    if group is not None:
        return extract_together(prepare, tables, out, group, batch=args.batch, dtype=args.dtype, **common)
    model, options = prepare()
    return extract(model, tables, out, overwrite=overwrite, **options, **common)


def origin(args: argparse.Namespace, data: Any, tables: Mapping[str, Any]) -> dict[str, Any]:
    """What a feature file says of its origin: data set, model, weights, and where the images are."""
    return {
        "data": data.name,
        "model": args.model,
        "weights": Path(args.weights).name if args.weights else None,
        "roots": {name: str(table.root.absolute()) for name, table in tables.items()},
    }


def check_choice(flag: str, value: str | None, choices: Iterable[str]) -> None:
    """One line that names the choices."""
    if value is not None and value not in choices:
        raise ValueError(f"{flag}: expected one of {', '.join(choices)}, got {value!r}")


def check_writable(path: Path, flag: str, suffixes: Sequence[str] = ()) -> None:
    """Complain before the work, not after it."""
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{flag}: expected a name ending in {', '.join(suffixes)}, got {path.name}")
    if path.is_dir():
        raise ValueError(f"{flag}: expected the name of a file, but {path} is a folder")
    if not path.parent.is_dir():
        raise ValueError(f"{flag}: the folder {path.parent} does not exist; make it first")


def print_json(content: Any) -> None:
    """As JSON on stdout."""
    print(json.dumps(content, indent=1, allow_nan=False))


def print_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Columns, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    right = [all(re.fullmatch(r"[-\d.,%]*", row[i]) for row in cells) for i in range(len(head))]
    for row in [list(head), *cells]:
        line = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        print("  ".join(line).rstrip())
