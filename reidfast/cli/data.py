# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast data`: what data sets there are, what one holds, whether its images can be read, and rendered people."""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ._common import add_command, add_json, check_writable, key_values, load_data, positive, print_json


def add(subparsers: Any) -> None:
    """Register the subcommand and its own ones."""
    parser = add_command(subparsers, "data", None, "list, summarise, check or render data sets")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    listed = add_command(actions, "list", list_names, "list the data sets that are known by name")
    add_json(listed)

    show = add_command(actions, "show", summarise, "count the images, identities and cameras of a data set")
    check = add_command(actions, "check", check_images, "read every image of a data set and name the broken ones")
    for sub in (show, check):
        sub.add_argument("data", metavar="NAME", help="name of a data set, a .json split or a .csv table")
        sub.add_argument("--root", metavar="FOLDER", help="where the data sets, or the images, are")
        sub.add_argument("--data-option", metavar="KEY=VALUE", action="append", default=[], help="option of the reader")
        add_json(sub)

    made = add_command(actions, "synthetic", synthetic, "render people into a folder laid out as Market-1501")
    made.add_argument("folder", metavar="FOLDER")
    made.add_argument("--ids", type=positive, default=200)
    made.add_argument("--cameras", type=positive, default=6)
    made.add_argument("--images", type=positive, default=4, help="of each identity by each camera")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--difficulty", type=float, default=0.5, help="0 (easy) to 1")
    made.add_argument("--option", metavar="KEY=VALUE", action="append", default=[], help="height, width, test, ...")
    made.add_argument("--sheet", metavar="PNG", help="also a contact sheet of the first identities")
    made.add_argument("--overwrite", action="store_true", help="replace rendered people of other parameters")
    made.add_argument("--workers", type=positive, default=os.cpu_count() or 1)
    add_json(made)


def list_names(args: argparse.Namespace) -> None:
    """`reidfast data list`."""
    from reidfast import data

    names = sorted(data.list_datasets() + data.list_search_datasets())
    print_json(names) if args.json else print("\n".join(names))


def summarise(args: argparse.Namespace) -> None:
    """`reidfast data show NAME`."""
    data = load_data(args, search=True)
    if args.json:
        print_json({"name": data.name, "splits": data.summary(), "notes": list(data.notes)})
    else:
        print(data.describe())


def check_images(args: argparse.Namespace) -> int:
    """`reidfast data check NAME`: exit status 1 where an image is broken."""
    from reidfast.data import decode
    from reidfast.engine.progress import progress

    data = load_data(args, search=True)
    paths = sorted({table.absolute(i) for table in data.splits.values() for i in range(len(table))})

    def problem(path: Path) -> str | None:
        try:
            decode(path)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    broken = []
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool, progress(len(paths), "check") as advance:
        for found in pool.map(problem, paths):
            advance(1)
            if found:
                broken.append(found)
    if args.json:
        print_json({"name": data.name, "splits": data.summary(), "notes": list(data.notes), "broken": broken})
    else:
        print(data.describe())
        for line in broken:
            print(f"broken: {line}")
        print(f"{len(paths):,} images read, {len(broken):,} broken")
    return 1 if broken else 0


def synthetic(args: argparse.Namespace) -> None:
    """`reidfast data synthetic FOLDER`."""
    from reidfast.data.synthetic import contact_sheet, write_synthetic

    if args.sheet:
        check_writable(Path(args.sheet), "--sheet", (".png", ".jpg"))
    parameters = {name: getattr(args, name) for name in ("ids", "cameras", "images", "seed", "difficulty")}
    parameters |= key_values(args.option, "--option")
    data = write_with_progress(
        write_synthetic, Path(args.folder), workers=args.workers, overwrite=args.overwrite, **parameters
    )
    if args.sheet:
        spec = data.info["synthetic"]
        cameras = range(1, min(spec.cameras, 6) + 1)
        sheet = contact_sheet(
            spec.world, pids=range(1, min(spec.ids, 8) + 1), camids=cameras, images=min(spec.images, 2)
        )
        sheet.save(args.sheet)
    if args.json:
        print_json({"name": data.name, "folder": str(args.folder), "splits": data.summary()})
    else:
        print(data.describe())


def write_with_progress(write: Any, folder: Path, **options: Any) -> Any:
    """`write_synthetic` with its calls of (done, total) shown."""
    from reidfast.engine.progress import progress

    shown: list[Any] = []
    before = [0]

    def tell(done: int, total: int) -> None:
        if done >= total and not shown:
            return
        if not shown:
            shown.append(progress(total, "render", done=done))
            shown.append(shown[0].__enter__())
            before[0] = done
        shown[1](done - before[0])
        before[0] = done

    try:
        return write(folder, progress=tell, **options)
    finally:
        if shown:
            shown[0].__exit__(None, None, None)
