# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Whole pictures with several people in them: for person search.

A fixed camera looks down a street. Size follows the ground: a person whose feet are at height y of the picture is
c (y - horizon) tall. Known persons walk among strangers and among look-alikes, who wear what a known person wears but
for a few things; cars, trees and poles stand before and behind them.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from reidfast.data.registry import Root, cache_folder
from reidfast.data.search import Floats, Scenes, SearchData, draw_galleries, draw_queries, search_reader
from reidfast.data.synthetic.figure import View, draw_figure
from reidfast.data.synthetic.people import COLOURS, Person, draw_person
from reidfast.data.synthetic.scenes import Camera, _Painter, _tone, draw_camera
from reidfast.data.synthetic.sets import _read_marker, _write_atomically
from reidfast.data.synthetic.streams import Stream
from reidfast.data.synthetic.world import _paste, _pose, _shadow

VERSION = 1  # raise it whenever a picture changes
MARKER = "crowds.json"
WALLS = ((168, 120, 98), (186, 178, 164), (150, 152, 156), (206, 196, 178), (122, 110, 104), (96, 106, 118))
GROUNDS = ((140, 138, 134), (168, 162, 152), (112, 114, 118), (150, 128, 112))


class Crowd(NamedTuple):
    """A picture of several people.

    Attributes:
        jpeg: The file's bytes.
        image: What they decode to, uint8 [H,W,3].
        boxes: (n, 4) as x1, y1, x2, y2: the whole figure, cut off at the border.
        pids: (n,), -1 for strangers and look-alikes.
        visibility: (n,) share of the figure's pixels that can be seen.
        kinds: For each box `known`, `stranger` or `look-alike`.
    """

    jpeg: bytes
    image: NDArray[np.uint8]
    boxes: Floats
    pids: NDArray[np.int64]
    visibility: NDArray[np.float64]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class CrowdWorld:
    """What decides how crowds look.

    Args:
        seed: Seed of people, cameras and moments.
        difficulty: As of `World`: 0 plain, 1 all that makes it hard.
        height: Height of the pictures in pixels.
        width: Width of the pictures in pixels.
        strangers: People nobody searches for, in a picture, at most.
        look_alikes: People who dress like one that is searched for, in a picture, at most.
    """

    seed: int = 0
    difficulty: float = 0.4
    height: int = 240
    width: int = 320
    strangers: int = 2
    look_alikes: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"CrowdWorld: expected difficulty in [0, 1], got {self.difficulty}")
        if self.height < 96 or self.width < 96:
            raise ValueError(f"CrowdWorld: expected at least 96 x 96 pixels, got {self.height} x {self.width}")
        if min(self.strangers, self.look_alikes) < 0:
            raise ValueError(
                f"CrowdWorld: expected strangers, look_alikes of at least 0, got {self.strangers}, {self.look_alikes}"
            )

    def camera(self, camid: int) -> Camera:
        """What `camid` does to colours, and from where it sees people."""
        return draw_camera(self.seed, camid, self.difficulty)

    def person(self, pid: int) -> Person:
        """Who `pid` is; the same people as in `World(seed, difficulty)`."""
        return draw_person(self.seed, pid, self.difficulty)

    def look_alike(self, pid: int, k: int = 0) -> Person:
        """Somebody else who wears most of what `pid` wears."""
        s = Stream(self.seed, "alike", pid, k)
        person, colours = self.person(pid), list(COLOURS)
        other = draw_person(self.seed, pid * 64 + k, self.difficulty, domain="alikes")
        changes: dict[str, Any] = {
            "pid": -(pid * 64 + k + 1),  # other folds in the same cloth
            "build": other.build,
            "shoulders": other.shoulders,
            "hips": other.hips,
            "hair": other.hair,
            "hair_style": other.hair_style,
            "skin": other.skin,
            "shoe_colour": other.shoe_colour,
        }
        parts = ["lower_colour", "upper_colour", "bag", *(["upper_second"] if person.pattern != "plain" else [])]
        first = s.integer(len(parts))
        for k in range(1 + s.integer(2)):
            part = parts[(first + k) % len(parts)]
            if part == "bag":
                bags = [b for b in ("none", "backpack", "crossbody bag", "handbag") if b != person.bag]
                changes |= {"bag": s.choice(bags), "bag_colour": other.bag_colour}
            else:
                changes[part] = s.choice([c for c in colours if c != getattr(person, part)])
        return replace(person, **changes)

    def render(self, cast: Sequence[int], camid: int, index: int = 0, alike: Sequence[int] = ()) -> Crowd:
        """The picture `index` that camera `camid` took of the people `cast`.

        Args:
            cast: Known persons.
            camid: Camera.
            index: Moment.
            alike: Persons whose look-alikes may walk by (up to `look_alikes` of them).
        """
        return _crowd(self, tuple(map(int, cast)), int(camid), int(index), tuple(map(int, alike)))


class _Place(NamedTuple):
    """Where a camera's ground is: `far` the line where the wall meets it, size c (y - horizon) on it."""

    horizon: float
    far: float
    slope: float


def _place(seed: int, camid: int, height: int) -> _Place:
    s = Stream(seed, "place", camid)
    horizon, far = s.uniform(0.02, 0.12) * height, s.uniform(0.3, 0.42) * height
    return _Place(horizon, far, s.uniform(0.5, 0.6))


@lru_cache(maxsize=32)
def background(seed: int, camid: int, kind: str, height: int, width: int, clutter: float) -> NDArray[np.uint8]:
    """What a camera sees when nobody is there, [height, width, 3]: walls, windows, ground, things that stand about."""
    s, place = Stream(seed, "street", camid), _place(seed, camid, height)
    p = _Painter(s, height, width)
    wide, far = width / height, place.far / height
    natural = kind == "park"
    for left, right in p.stretches(0.5):
        wall = (
            _tone(s, (186, 204, 220), (92, 116, 84), (120, 134, 108), (170, 186, 190))
            if natural
            else _tone(s, *(((214, 208, 194), (188, 196, 200), (200, 186, 160)) if kind == "hall" else WALLS))
        )
        p.rect(left, -0.1, right - left, far + 0.2, wall)
        if not natural and kind != "hall":
            p.bricks(left, right, 0, far, wall, s.uniform(0.02, 0.04) if s.chance(0.5) else s.uniform(0.08, 0.14))
    p.ground(
        far, _tone(s, (96, 124, 66), (120, 130, 80)) if natural else _tone(s, *GROUNDS), "grass" if natural else ""
    )

    def standing(y: float, paint: Callable[[float, float, float], None]) -> None:
        """Calls paint(x, y, unit) with lengths in body heights at the ground line y (a share of the height)."""
        unit = place.slope * (y * height - place.horizon)
        p.unit = unit * p.scale  # type: ignore[assignment]
        paint(s.uniform(-0.05, wide) * height / unit, y * height / unit, unit)
        p.unit = height * p.scale

    things: list[tuple[float, Callable[[float, float, float], None]]] = []

    def scatter(mean: float, low: float, high: float, paint: Callable[[float, float, float], None]) -> None:
        count = int(mean * (0.4 + clutter) + s.random())
        things.extend((far + (1 - far) * s.uniform(low, high), paint) for _ in range(count))

    if not natural:
        scatter(4, 0, 0.02, lambda x, y, u: p.window(x, y - s.uniform(1.0, 1.5), s.uniform(0.3, 0.5), 0.55))
        scatter(2, 0, 0.02, lambda x, y, u: p.poster(x, y - s.uniform(0.7, 1.0), 0.4, 0.5))
    if kind in ("street", "car park"):
        scatter(2.5, 0.03, 0.2, lambda x, y, u: p.car(x, y, s.uniform(0.9, 1.1)))
    if kind in ("campus", "plaza", "street"):
        scatter(2, 0.05, 0.4, lambda x, y, u: p.bicycle(x, y, s.uniform(0.5, 0.6)))
    scatter(1.5, 0.05, 0.4, lambda x, y, u: p.bench(x, y))
    scatter(2, 0.02, 0.5, lambda x, y, u: p.bush(x, y, s.uniform(0.4, 0.8)))
    scatter(3 if natural else 1.5, 0.02, 0.3, lambda x, y, u: p.tree(x, y, s.uniform(1.4, 1.9)))
    scatter(2, 0.05, 0.5, lambda x, y, u: p.pole(x, y))
    for y, paint in sorted(things, key=lambda t: t[0]):
        standing(y, paint)
    image = p.image.resize((width, height), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.0015 * height))
    result = np.asarray(image, np.float32)
    grain = np.asarray(Image.fromarray(s.noise(height // 4 + 1, width // 4 + 1)).resize((width, height)))
    out = np.clip(result * (1 + 0.03 * grain)[..., None] + 0.5, 0, 255).astype(np.uint8)
    out.setflags(write=False)
    return out


def _crowd(world: CrowdWorld, cast: tuple[int, ...], camid: int, index: int, alike: tuple[int, ...]) -> Crowd:
    d, h, w = world.difficulty, world.height, world.width
    s, camera, place = Stream(world.seed, "crowd", camid, index), world.camera(camid), _place(world.seed, camid, h)
    who: list[tuple[str, int, Person]] = [("known", pid, world.person(pid)) for pid in cast]
    for _ in range(s.integer(world.strangers + 1)):
        who.append(("stranger", -1, draw_person(world.seed, camid * 1000 + s.integer(1000), d, domain="stranger")))
    for _ in range(min(world.look_alikes, len(alike))):
        if s.chance(0.6):
            who.append(("look-alike", -1, world.look_alike(alike[s.integer(len(alike))], s.integer(4))))

    # where everybody stands: feet on the ground, not too much on top of each other
    spots: list[tuple[float, float, float]] = []
    for _ in who:
        best, least = None, math.inf
        for _try in range(12):
            y = place.far + (0.985 * h - place.far) * (0.12 + 0.88 * math.sqrt(s.random()))
            size = place.slope * (y - place.horizon)
            x = s.uniform(0.2 * size, w - 0.2 * size)
            cover = 0.0
            for x2, y2, size2 in spots:
                wide = max(0.0, 0.2 * (size + size2) - abs(x - x2))
                high = max(0.0, min(y, y2) - max(y - size, y2 - size2))
                cover = max(cover, wide * high / (0.4 * min(size, size2) ** 2))
            if cover < least:
                best, least = (x, y, size), cover
            if cover < 0.15 + 0.4 * d:
                break
        assert best is not None
        spots.append(best)
    canvas = background(world.seed, camid, camera.kind, h, w, d).astype(np.float32)
    owner = np.zeros((h, w), np.int32)
    order = sorted(range(len(who)), key=lambda i: spots[i][1])  # the nearer ones are painted over the farther
    boxes, whole = np.zeros((len(who), 4)), np.zeros(len(who))
    for i in order:
        _, _, person = who[i]
        x, y, size = spots[i]
        yaw = camera.yaw + s.normal(0, camera.spread) + (math.pi if s.chance(0.35 * d) else 0.0)
        pitch = camera.pitch + s.normal(0, 0.02)
        light = (camera.light[0] + s.normal(0, 0.15), camera.light[1], camera.light[2])
        tall = size / (math.cos(pitch) + 0.09)
        figure = draw_figure(world.seed, person, _pose(s, person), View(yaw, pitch, tall, light, camera.ambient), 2)
        _shadow(canvas, x, y, tall, 0.45)
        touched = _paste(canvas, figure.rgb, figure.alpha, round(x - figure.origin[0]), round(y - figure.origin[1]))
        whole[i] = max(1, (figure.alpha > 0.5).sum())
        if touched is None:
            continue
        (rows, columns), inside = touched[0], figure.alpha[touched[1]] > 0.5
        owner[rows, columns][inside] = i + 1
        boxes[i] = columns.start, rows.start, columns.stop, rows.stop
        if s.chance(0.12 * d):  # something stands in front
            _hide(s, canvas, owner, boxes[i])
    seen = np.bincount(owner.reshape(-1), minlength=len(who) + 1)[1:] / whole
    keep = np.flatnonzero((seen > 0.25) & (boxes[:, 2] > boxes[:, 0]))
    jpeg = _develop(s, camera, canvas, d)
    with Image.open(io.BytesIO(jpeg)) as decoded:
        image = np.array(decoded)
    return Crowd(
        jpeg,
        image,
        boxes[keep],
        np.array([who[i][1] for i in keep], np.int64),
        seen[keep],
        tuple(who[i][0] for i in keep),
    )


def _hide(s: Stream, canvas: NDArray[np.float32], owner: NDArray[np.int32], box: Floats) -> None:
    """A low wall, a bonnet or a hedge before the legs of a person."""
    h, w = owner.shape
    x1, y1, x2, y2 = box
    top, bottom = int(y1 + (y2 - y1) * s.uniform(0.55, 0.75)), min(h, int(y2) + 2)
    left, right = max(0, int(x1 - 0.3 * (x2 - x1))), min(w, int(x2 + s.uniform(0, 1) * (x2 - x1)))
    base = np.array(s.choice(((150, 146, 140), (60, 62, 68), (150, 44, 44), (60, 92, 54), (50, 72, 120))), np.float32)
    if top < bottom and left < right:
        lit = 1.1 - 0.35 * np.arange(bottom - top, dtype=np.float32) / max(1, bottom - top)
        canvas[top:bottom, left:right] = base * lit[:, None, None]
        owner[top:bottom, left:right] = 0


def _develop(s: Stream, camera: Camera, canvas: NDArray[np.float32], d: float) -> bytes:
    """What the camera makes of the light: the chain of `World`, for a picture of any size."""
    h, w = canvas.shape[:2]
    ramp_x = np.float32(camera.ramp[0]) * np.linspace(-1, 1, w, dtype=np.float32)
    ramp_y = np.float32(camera.ramp[1]) * np.linspace(-1, 1, h, dtype=np.float32)
    canvas *= (1 + ramp_y[:, None] + ramp_x[None, :])[..., None]
    exposure = math.exp(s.normal(0, 0.1 * d))
    grey = (canvas @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    canvas = np.clip(grey + (canvas - grey) * np.float32(camera.saturation), 0, 255)
    picture = Image.fromarray((canvas + 0.5).astype(np.uint8))
    levels = np.arange(256) / 255
    tables = [
        np.clip(255 * ((levels * g * exposure).clip(0, 1) ** camera.gamma - 0.5) * camera.contrast + 127.5, 0, 255)
        for g in camera.gain
    ]
    picture = picture.point(np.round(np.concatenate(tables)).astype(np.uint8).tolist())
    blur = 0.5 * (camera.blur + abs(s.normal(0, 0.35 * d)))
    if blur > 0.25:
        picture = picture.filter(ImageFilter.GaussianBlur(blur))
    noisy = np.asarray(picture, np.float32) + np.float32(camera.noise) * s.noise(h, w, 1)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(noisy + 0.5, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=max(50, camera.quality))
    return buffer.getvalue()


@dataclass(frozen=True)
class CrowdSet:
    """What decides the content of a folder of crowds.

    Args:
        ids: Known persons, from 1; the first `round((1 - test) * ids)` are for training.
        cameras: Cameras, from 1.
        train: Pictures to train on.
        gallery: Pictures to search.
        people: Known persons in a picture; everybody is dealt equally often.
        queries: Most queries of each test person; each from another camera while there are some.
        test: Share of the persons that are searched for.
        seed: See `CrowdWorld`.
        difficulty: See `CrowdWorld`.
        height: See `CrowdWorld`.
        width: See `CrowdWorld`.
        strangers: See `CrowdWorld`.
        look_alikes: See `CrowdWorld`.
        version: Version of the renderer.
    """

    ids: int = 60
    cameras: int = 4
    train: int = 160
    gallery: int = 120
    people: int = 3
    queries: int = 2
    test: float = 0.5
    seed: int = 0
    difficulty: float = 0.4
    height: int = 240
    width: int = 320
    strangers: int = 2
    look_alikes: int = 1
    version: int = VERSION

    def __post_init__(self) -> None:
        for name, least in (("ids", 2), ("cameras", 1), ("train", 0), ("gallery", 2), ("people", 1), ("queries", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"synthetic_scenes: expected {name} of at least {least}, got {getattr(self, name)}")
        if not 0 < self.test <= 1:
            raise ValueError(f"synthetic_scenes: expected test in (0, 1], got {self.test}")
        training = self.ids - len(self.persons("gallery"))
        if self.people > len(self.persons("gallery")) or (self.train and self.people > training):
            raise ValueError(
                f"synthetic_scenes: expected people ({self.people}) no more than the persons of each part, got "
                f"{training} for training and {self.ids - training} to search for"
            )
        if self.version != VERSION:
            raise ValueError(f"synthetic_scenes: expected version {VERSION} of the renderer, got {self.version}")
        _ = self.world  # checks the rest

    @property
    def world(self) -> CrowdWorld:
        """Where these people live."""
        return CrowdWorld(self.seed, self.difficulty, self.height, self.width, self.strangers, self.look_alikes)

    def persons(self, part: str) -> list[int]:
        """Who is in `train` or `gallery`."""
        training = min(self.ids - 1, round((1 - self.test) * self.ids)) if self.test < 1 else 0
        return list(range(1, training + 1)) if part == "train" else list(range(training + 1, self.ids + 1))

    def casts(self, part: str) -> list[tuple[int, list[int]]]:
        """(camera, persons) of each picture: decks of all persons are shuffled and dealt one after the other."""
        s = Stream(self.seed, "casting", 0 if part == "train" else 1)
        everybody = self.persons(part)
        deck: list[int] = []
        out: list[tuple[int, list[int]]] = []
        for i in range(self.train if part == "train" else self.gallery):
            hand: list[int] = []
            while len(hand) < self.people:
                if not deck:
                    deck = list(everybody)
                    for k in range(len(deck) - 1, 0, -1):
                        j = s.integer(k + 1)
                        deck[k], deck[j] = deck[j], deck[k]
                at = next((k for k, pid in enumerate(deck) if pid not in hand), None)
                if at is None:  # the rest of the deck is in this hand already
                    deck = []
                    continue
                hand.append(deck.pop(at))
            out.append((i % self.cameras + 1, hand))
        return out

    def crowd(self, part: str, index: int) -> Crowd:
        """Picture `index` of `train` or `gallery`, rendered."""
        camid, cast = self.casts(part)[index]
        return self._render(part, index, camid, cast)

    def _render(self, part: str, index: int, camid: int, cast: list[int]) -> Crowd:
        moment = index + (0 if part == "train" else 1_000_000)
        return self.world.render(cast, camid, moment, alike=self.persons(part))


@search_reader("synthetic_scenes")
def synthetic_scenes(
    name: str,
    root: Root | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    **parameters: Any,
) -> SearchData:
    """Rendered scenes; made when they are asked for first, in a folder that can be taken up again at any moment.

    Args:
        name: The name asked for.
        root: The folder. Default: one for these parameters under `cache_folder()`.
        progress: Called with (done, total) now and then.
        **parameters: See `CrowdSet`; `info["synthetic"]` of the result holds them.
    """
    unknown = sorted(set(parameters) - set(CrowdSet.__dataclass_fields__))
    if unknown:
        known = ", ".join(f for f in CrowdSet.__dataclass_fields__ if f != "version")
        raise ValueError(f"{name}: expected parameters among {known}, got {', '.join(unknown)}")
    spec = CrowdSet(**parameters)
    if root is None:
        import hashlib

        digest = hashlib.sha256(json.dumps(asdict(spec), sort_keys=True).encode()).hexdigest()[:12]
        folder = cache_folder() / f"synthetic_scenes-{digest}"
    else:
        folder = Path(root).expanduser()
    marker = _read_marker(folder / MARKER)
    if marker is not None and marker.get("parameters") != asdict(spec):
        raise FileExistsError(f"{name}: {folder} holds scenes of other parameters; choose another folder")
    if marker is None:
        if folder.is_dir() and any(p.name not in ("train", "gallery") for p in folder.iterdir()):
            raise FileExistsError(f"{name}: {folder} is not empty and not made here; choose another folder")
        marker = _write(spec, folder, progress)
    scenes = {
        part: Scenes.build(
            folder,
            [(row["path"], row["camera"], np.array(row["boxes"]), row["pids"]) for row in marker[part]],
        )
        for part in ("train", "gallery")
    }
    queries, _ = draw_queries(scenes["gallery"], per_person=spec.queries, seed=spec.seed)
    sizes = [n for n in (25, 50, 100) if n < len(scenes["gallery"])]
    lists = draw_galleries(scenes["gallery"], queries, sizes, spec.seed)
    data = SearchData(
        name,
        scenes["train"],
        scenes["gallery"],
        queries,
        lists,
        str(sizes[-1]) if sizes else "all",
        info={"synthetic": spec},
    )
    return data


def _write(spec: CrowdSet, folder: Path, progress: Callable[[int, int], None] | None) -> dict[str, Any]:
    total = spec.train + spec.gallery
    content: dict[str, Any] = {"parameters": asdict(spec), "train": [], "gallery": []}
    done = 0
    for part in ("train", "gallery"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for i, (camid, cast) in enumerate(spec.casts(part)):
            path = f"{part}/{i:05d}_c{camid}.jpg"
            row, beside = None, folder / part / f"{i:05d}.json"
            if (folder / path).is_file():
                row = _read_marker(beside)
            if row is None:
                crowd = spec._render(part, i, camid, cast)
                _write_atomically(folder / path, crowd.jpeg)
                row = {
                    "path": path,
                    "camera": camid,
                    "boxes": crowd.boxes.tolist(),
                    "pids": crowd.pids.tolist(),
                    "visibility": crowd.visibility.round(4).tolist(),
                    "kinds": list(crowd.kinds),
                }
                _write_atomically(beside, json.dumps(row).encode())
            content[part].append(row)
            done += 1
            if progress:
                progress(done, total)
    _write_atomically(folder / MARKER, json.dumps(content).encode())
    return content
