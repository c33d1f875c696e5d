# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Who the synthetic people are: build, hair, clothes, bags; and their clothes as textures around the body.

A texture is an array [ROWS, COLUMNS, 3]: rows run along the part from its upper end, columns around it, with the front
of the person in the middle column and the back at both edges. So a logo sits on the chest, straps run over the
shoulders, and a view from behind shows neither.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reidfast.data.synthetic.streams import Stream

ROWS, COLUMNS = 64, 96
Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "black": (30, 30, 34),
    "charcoal": (62, 64, 70),
    "grey": (122, 124, 128),
    "silver": (178, 180, 182),
    "white": (232, 232, 230),
    "navy": (34, 42, 78),
    "blue": (46, 86, 168),
    "sky": (124, 172, 220),
    "teal": (26, 120, 122),
    "green": (48, 122, 66),
    "olive": (98, 100, 60),
    "lime": (156, 196, 64),
    "yellow": (228, 196, 58),
    "orange": (226, 124, 42),
    "red": (190, 40, 44),
    "burgundy": (110, 32, 48),
    "pink": (228, 144, 166),
    "purple": (108, 66, 140),
    "brown": (100, 70, 48),
    "beige": (200, 178, 142),
}
COMMON = {"black": 5.0, "charcoal": 3.0, "grey": 3.0, "white": 3.5, "navy": 3.0, "blue": 2.0, "silver": 1.0}
TROUSERS = {
    "black": 5.0,
    "charcoal": 3.0,
    "navy": 4.0,
    "blue": 4.0,
    "grey": 2.0,
    "beige": 1.5,
    "olive": 1.0,
    "brown": 0.7,
    "white": 0.5,
    "sky": 0.8,
}
SKIN: tuple[Colour, ...] = (
    (240, 208, 184),
    (230, 190, 160),
    (214, 168, 134),
    (196, 146, 110),
    (166, 116, 84),
    (132, 88, 62),
    (98, 64, 46),
    (72, 48, 38),
)
HAIR: dict[str, Colour] = {
    "black": (26, 24, 26),
    "dark brown": (52, 38, 30),
    "brown": (92, 62, 40),
    "auburn": (122, 60, 34),
    "blond": (196, 160, 96),
    "grey": (150, 150, 150),
}
TEXTURES = (
    "torso",
    "sleeve",
    "forearm",
    "hand",
    "neck",
    "hips",
    "thigh",
    "shin",
    "skirt",
    "shoe",
    "head",
    "hair",
    "hat",
    "bag",
    "detail",
)
TEXTURE_INDEX = {name: i for i, name in enumerate(TEXTURES)}


@dataclass(frozen=True)
class Person:
    """What stays the same about one identity wherever it is seen. Lengths are relative to an ordinary adult."""

    pid: int
    build: float
    shoulders: float
    hips: float
    legs: float
    head: float
    stride: float
    skin: int
    hair: str
    hair_style: str
    beard: bool
    glasses: bool
    hat: str
    hat_colour: str
    upper: str
    upper_colour: str
    upper_second: str
    pattern: str
    pattern_size: float
    sleeves: str
    inner_colour: str
    hem: float
    lower: str
    lower_colour: str
    lower_detail: str
    shoes: str
    shoe_colour: str
    bag: str
    bag_colour: str
    bag_side: int

    def describe(self) -> str:
        """One line a person could search by."""
        wears = f"{self.upper_colour} {self.pattern if self.pattern != 'plain' else ''} {self.upper}".replace("  ", " ")
        parts = [f"{self.hair} {self.hair_style} hair", wears, f"{self.lower_colour} {self.lower}"]
        parts += [f"{self.shoe_colour} {self.shoes}"]
        parts += [f"{self.hat_colour} {self.hat}"] if self.hat != "none" else []
        parts += [f"{self.bag_colour} {self.bag}"] if self.bag != "none" else []
        return ", ".join(parts)

    def asdict(self) -> dict[str, Any]:
        """All attributes by name."""
        return asdict(self)


def draw_person(seed: int, pid: int, difficulty: float = 0.5, domain: str = "person") -> Person:
    """The person `pid` of a world. A difficult world dresses more of them in the same few colours."""
    s = Stream(seed, domain, pid)
    all_colours = list(COLOURS)
    share = 0.25 + 0.6 * difficulty

    def clothes(common: dict[str, float] = COMMON) -> str:
        return s.choice(list(common), list(common.values())) if s.chance(share) else s.choice(all_colours)

    slender = s.chance(0.5)  # narrow shoulders, wider hips, more often long hair and skirts; nothing else is implied
    upper = s.choice(
        ("T-shirt", "shirt", "sweater", "hoodie", "jacket", "open jacket", "coat", "dress", "tank top"),
        (5, 4, 4, 3, 4, 4, 2, 3 if slender else 0, 1.5),
    )
    lower = s.choice(
        ("trousers", "jeans", "shorts", "skirt", "long skirt", "leggings"),
        (5, 5, 3, 3 if slender else 0, 1.2 if slender else 0, 2 if slender else 0.3),
    )
    if upper == "coat" and lower in ("shorts", "skirt"):
        lower = "trousers"
    sleeves = {"tank top": "none", "T-shirt": "short", "dress": s.choice(("none", "short", "long"))}.get(upper, "long")
    if upper == "shirt" and s.chance(0.4):
        sleeves = "short"
    pattern = s.choice(
        ("plain", "stripes", "pinstripes", "checks", "block", "dots", "logo", "panel", "band"),
        (6, 2.2, 1.2, 2, 1.6, 1.2, 3, 1.2, 1.6),
    )
    upper_colour, upper_second = clothes(), clothes()
    while upper_second == upper_colour:
        upper_second = s.choice(all_colours)
    lower_colour = (
        s.choice(("navy", "blue", "sky", "charcoal", "black"), (3, 4, 1.5, 1.5, 1.5))
        if lower == "jeans"
        else clothes(TROUSERS)
    )
    if upper == "dress":
        lower, lower_colour = "dress", upper_colour
    hem = {"coat": 0.35, "open jacket": 0.5, "jacket": 0.51, "hoodie": 0.5, "dress": s.uniform(0.24, 0.38)}.get(upper)
    return Person(
        pid=pid,
        build=s.uniform(0.86, 1.06) if slender else s.choice((s.uniform(0.92, 1.1), s.uniform(1.1, 1.3)), (3, 1)),
        shoulders=s.uniform(0.88, 0.98) if slender else s.uniform(0.98, 1.12),
        hips=s.uniform(0.98, 1.14) if slender else s.uniform(0.88, 1.0),
        legs=s.uniform(0.95, 1.04),
        head=s.uniform(0.94, 1.08),
        stride=s.uniform(0.8, 1.15),
        skin=s.integer(len(SKIN)),
        hair=s.choice(list(HAIR), (5, 4, 3, 1, 2, 1.4)),
        hair_style=s.choice(("short", "bob", "long", "ponytail", "bun"), (1.2, 2, 3.4, 2.4, 1))
        if slender
        else s.choice(("short", "bald", "bob", "long"), (7, 1.2, 0.7, 0.5)),
        beard=not slender and s.chance(0.25),
        glasses=s.chance(0.2),
        hat=s.choice(("none", "cap", "beanie"), (8, 1.4, 0.8)),
        hat_colour=clothes(),
        upper=upper,
        upper_colour=upper_colour,
        upper_second=upper_second,
        pattern=pattern,
        pattern_size=s.uniform(0.6, 1.5),
        sleeves=sleeves,
        inner_colour=s.choice(("white", "grey", "black", "sky", "beige", "red", "yellow", "pink")),
        hem=hem if hem is not None else s.choice((0.575, 0.53, 0.505, 0.485), (2, 2, 3, 1)),
        lower=lower,
        lower_colour=lower_colour,
        lower_detail=s.choice(("plain", "side stripe", "faded", "turned up"), (6, 1.2, 2, 1.2)),
        shoes=s.choice(("trainers", "shoes", "boots", "sandals"), (5, 4, 1.5, 1)),
        shoe_colour=s.choice(
            ("black", "white", "brown", "grey", "red", "blue", "beige", "charcoal"), (6, 4, 2, 2, 1, 1, 1, 2)
        ),
        bag=s.choice(
            ("none", "backpack", "crossbody bag", "shoulder bag", "handbag", "shopping bag"), (6, 4, 2, 1.8, 1.8, 1)
        ),
        bag_colour=clothes(),
        bag_side=s.choice((-1, 1)),
    )


def _smooth(s: Stream, rows: int, columns: int, cells: tuple[int, int]) -> NDArray[np.float32]:
    """Smooth noise that closes around the body (first and last column agree)."""
    coarse = s.noise(*cells)
    coarse = np.concatenate([coarse[:, -1:], coarse, coarse[:, :1]], 1)
    wide = Image.fromarray(coarse).resize((columns + 2 * columns // cells[1], rows), Image.Resampling.BICUBIC)
    at = columns // cells[1]
    return np.asarray(wide)[:, at : at + columns]


@lru_cache(maxsize=96)
def textures(seed: int, person: Person) -> NDArray[np.uint8]:
    """All textures of a person, [len(TEXTURES) * ROWS * COLUMNS, 3]."""
    s = Stream(seed, "cloth", person.pid)
    v = ((np.arange(ROWS) + 0.5) / ROWS)[:, None]  # 0 at the upper end
    u = ((np.arange(COLUMNS) + 0.5) / COLUMNS * 2 - 1)[None, :]  # -1..1, 0 in front
    front, side = np.abs(u), np.abs(np.abs(u) - 0.5)
    atlas = np.zeros((len(TEXTURES), ROWS, COLUMNS, 3), np.float32)
    rgb = {name: np.array(value, np.float32) for name, value in COLOURS.items()}
    skin = np.array(SKIN[person.skin], np.float32)
    hair = np.array(HAIR[person.hair], np.float32)
    main, second, inner = rgb[person.upper_colour], rgb[person.upper_second], rgb[person.inner_colour]

    def part(name: str) -> NDArray[np.float32]:
        return atlas[TEXTURE_INDEX[name]]

    def paint(name: str, where: NDArray[np.bool_], colour: NDArray[np.float32]) -> None:
        part(name)[np.broadcast_to(where, (ROWS, COLUMNS))] = colour

    for name in ("neck", "hand", "forearm"):
        part(name)[:] = skin

    # upper body: the torso's texture runs from the neck to the hem
    size = person.pattern_size
    length = 0.84 - person.hem
    vt = v * length  # in body heights
    pattern = person.pattern
    for name in ("torso", "sleeve", "forearm"):
        along = vt if name == "torso" else v * 0.17 + (0.04 if name == "sleeve" else 0.21)
        if name == "forearm" and person.sleeves != "long":
            continue
        part(name)[:] = main
        if pattern == "stripes":
            paint(name, np.broadcast_to(np.mod(along / (0.056 * size), 1) < 0.45, (ROWS, COLUMNS)), second)
        elif pattern == "pinstripes":
            period = 0.16 * size
            paint(name, np.broadcast_to(np.mod(u / period, 1) < 0.35, (ROWS, COLUMNS)), second)
        elif pattern == "checks":
            across = np.mod(u / (0.2 * size), 1) < 0.5
            down = np.mod(along / (0.07 * size), 1) < 0.5
            paint(name, across ^ down, 0.45 * main + 0.55 * second)
            paint(name, across & down, second)
        elif pattern == "dots":
            du = np.mod(u / (0.22 * size), 1) - 0.5
            dv = np.mod(along / (0.066 * size), 1) - 0.5
            paint(name, du**2 + dv**2 < 0.085, second)
        elif pattern == "panel" and name != "torso":
            part(name)[:] = second
        elif pattern == "block":
            cut = 0.11 + 0.06 * size
            paint(name, np.broadcast_to((along > cut) == (size > 1), (ROWS, COLUMNS)), second)
        elif pattern == "band":
            at = 0.08 + 0.05 * size
            paint(name, np.broadcast_to(np.abs(along - at) < 0.028, (ROWS, COLUMNS)), second)
    if pattern == "logo":
        kind, at = s.integer(4), 0.12 + 0.02 * size
        du, dv = u / (0.2 * size), (vt - at) / (0.05 * size)
        if kind == 0:
            paint("torso", du**2 + dv**2 < 1, second)
        elif kind == 1:
            paint("torso", (np.abs(du) < 1) & (np.abs(dv) < 0.8), second)
        elif kind == 2:  # two lines of something written
            bars = (np.abs(du) < 1.2) & (np.abs(np.abs(dv) - 0.45) < 0.25) & (np.mod(du * 4 + dv, 1) < 0.7)
            paint("torso", bars, second)
        else:
            paint("torso", (np.abs(du) + np.abs(dv) < 1.1), second)
        if s.chance(0.3):  # and a print on the back
            paint("torso", (front > 0.82) & (np.abs(vt - at) < 0.05 * size), second)
    if person.upper in ("open jacket",) or (person.upper == "coat" and size > 1):
        paint("torso", front < 0.16 + 0.1 * v, inner)
        paint("torso", np.abs(front - (0.18 + 0.1 * v)) < 0.02, 0.7 * main)
    elif person.upper in ("jacket", "coat", "shirt"):
        paint("torso", front < 0.018, 0.55 * main if main.mean() > 90 else main + 50)  # zip or buttons
        paint("torso", (front < 0.14) & (vt < 0.05), inner if person.upper != "shirt" else skin)
    if person.upper in ("T-shirt", "tank top", "dress", "sweater"):
        neckline = {"tank top": 0.055, "dress": 0.05, "T-shirt": 0.035}.get(person.upper, 0.022)
        paint("torso", vt < neckline * np.clip(1.6 - 3.2 * front, 0.35, 1), skin)
    if person.upper == "hoodie":
        paint("torso", (np.abs(vt - 0.25) < 0.004) & (front < 0.3), 0.6 * main)
        paint("torso", (front > 0.7) & (vt < 0.1) & (vt > 0.03), 0.8 * main)  # the hood hangs behind
    if person.upper == "dress" and s.chance(0.5):
        paint("torso", np.broadcast_to(np.abs(vt - 0.235) < 0.012, (ROWS, COLUMNS)), second)
    if person.upper in ("sweater", "hoodie", "jacket"):
        paint("torso", np.broadcast_to(v > 0.95, (ROWS, COLUMNS)), 0.75 * main)
    if person.sleeves == "none":
        part("sleeve")[:] = skin
    elif person.sleeves == "short":
        paint("sleeve", np.broadcast_to(v > 0.72, (ROWS, COLUMNS)), skin)
    elif person.upper in ("sweater", "hoodie", "jacket", "coat"):
        paint("forearm", np.broadcast_to(v > 0.92, (ROWS, COLUMNS)), 0.8 * main)
    strap = rgb[person.bag_colour] * 0.8
    if person.bag == "backpack":
        paint("torso", (np.abs(front - 0.3) < 0.05) & (vt < 0.17), strap)
    elif person.bag == "crossbody bag":
        diagonal = person.bag_side * np.where(front < 0.5, u, np.sign(u) * (1 - front))
        paint("torso", (np.abs(diagonal - (vt - 0.15) * 3.1) < 0.05) & (vt < 0.33), strap)
    elif person.bag == "shoulder bag":
        paint("torso", (np.abs(np.abs(u * person.bag_side - 0.36)) < 0.045) & (vt < 0.09), strap)

    # lower body
    low = rgb[person.lower_colour]
    bare = person.lower in ("shorts", "skirt", "dress")
    for name in ("hips", "thigh", "shin"):
        part(name)[:] = low
    if person.lower == "jeans" or person.lower_detail == "faded":
        for name in ("thigh", "shin"):
            fade = np.clip(1 - front / 0.4, 0, 1) * np.clip(1.4 - np.abs(v - 0.5) * 2, 0, 1)
            part(name)[:] += (fade * 0.22)[..., None] * (np.array([215, 222, 232], np.float32) - part(name))
    if person.lower_detail == "side stripe" and person.lower in ("trousers", "leggings", "shorts"):
        for name in ("hips", "thigh", "shin"):
            paint(name, side < 0.07, second if abs(float(second.mean() - low.mean())) > 40 else rgb["white"])
    if person.lower == "shorts":
        paint("thigh", np.broadcast_to(v > 0.8, (ROWS, COLUMNS)), skin)
    if bare:
        tights = person.lower != "shorts" and s.chance(0.35)
        legs = rgb["black"] + 8 if tights else skin
        part("shin")[:] = legs
        if person.lower != "shorts":
            part("thigh")[:] = legs
    if person.lower == "shorts" or (bare and s.chance(0.2)):
        socks = np.broadcast_to(v > s.uniform(0.62, 0.92), (ROWS, COLUMNS))
        paint("shin", socks, rgb[s.choice(("white", "black", "grey"))])
    elif person.lower_detail == "turned up" and not bare and person.lower != "long skirt":
        paint("shin", np.broadcast_to(v > 0.84, (ROWS, COLUMNS)), skin)
        paint("shin", np.broadcast_to((v > 0.78) & (v <= 0.84), (ROWS, COLUMNS)), np.minimum(low * 1.3 + 15, 255))
    part("skirt")[:] = low
    if person.lower in ("skirt", "long skirt") and s.chance(0.5):
        kind = s.integer(3)
        accent = rgb[s.choice(list(COLOURS))]
        if kind == 0:
            paint("skirt", np.broadcast_to(v > 0.86, (ROWS, COLUMNS)), accent)
        elif kind == 1:
            paint("skirt", np.mod(u * 6, 1) < 0.5, 0.75 * low)
        else:
            paint("skirt", (np.mod(u * 5, 1) - 0.5) ** 2 + (np.mod(v * 5, 1) - 0.5) ** 2 < 0.09, accent)
    shoe = rgb[person.shoe_colour]
    part("shoe")[:] = shoe
    if person.shoes == "trainers":
        paint("shoe", front > 0.72, rgb["white"])  # the sole: the far side of a lying loft
        paint("shoe", (side < 0.12) & (np.abs(v - 0.5) < 0.12), rgb["white"] if shoe.mean() < 150 else rgb["charcoal"])
    elif person.shoes == "sandals":
        paint("shoe", np.mod(v * 4, 1) < 0.5, skin)
    if person.shoes == "boots":
        paint("shin", np.broadcast_to(v > 0.68, (ROWS, COLUMNS)), shoe)

    # head: hair above a line that is high in front and low behind
    head = part("head")
    head[:] = skin
    brow = {"bald": 0.0, "short": 0.3, "bun": 0.27}.get(person.hair_style, 0.3)
    line = brow + (0.34 if person.hair_style == "short" else 0.5) * np.clip((front - 0.26) / 0.2, 0, 1)
    if person.hair_style != "bald":
        paint("head", v < line, hair)
    else:
        paint("head", (front > 0.5) & (v > 0.4) & (v < 0.62), 0.5 * skin + 0.5 * hair)
    face = front < 0.3
    eyes = (np.abs(v - 0.5) < 0.035) & (np.abs(front - 0.13) < 0.06)
    paint("head", (np.abs(v - 0.43) < 0.02) & (np.abs(front - 0.13) < 0.09), 0.55 * skin + 0.45 * hair)
    paint("head", eyes, np.array([48, 40, 38], np.float32))
    if person.glasses:
        rim = np.abs(np.hypot((front - 0.13) / 0.1, (v - 0.5) / 0.075) - 1) < 0.3
        rim |= (front < 0.04) & (np.abs(v - 0.49) < 0.02)
        paint("head", rim, np.array([36, 36, 40], np.float32))
    paint("head", (front < 0.035) & (v > 0.52) & (v < 0.65), 0.86 * skin)
    paint("head", (front < 0.09) & (np.abs(v - 0.765) < 0.02), 0.62 * skin + np.array([26, 4, 6], np.float32))
    paint("head", face & (v > 0.9), 0.82 * skin)
    if person.beard:
        lips = (front < 0.08) & (np.abs(v - 0.765) < 0.025)
        paint("head", (front < 0.42) & (v > 0.7) & ~lips, 0.25 * skin + 0.75 * hair)
    part("hair")[:] = hair
    part("hair")[:] *= (1 + 0.12 * np.cos(u * 40))[..., None]
    hat = rgb[person.hat_colour]
    part("hat")[:] = hat
    if person.hat == "beanie":
        paint("hat", np.broadcast_to(v > 0.72, (ROWS, COLUMNS)), 0.75 * hat + 20)
        paint("hat", np.broadcast_to(v < 0.16, (ROWS, COLUMNS)), second)
    elif person.hat == "cap":
        paint("hat", (front < 0.12) & (v > 0.45) & (v < 0.75), second)
    bag = rgb[person.bag_colour]
    part("bag")[:] = bag
    paint("bag", np.broadcast_to(np.abs(v - 0.42) < 0.022, (ROWS, COLUMNS)), 0.6 * bag)
    if person.bag == "backpack":
        paint("bag", (front > 0.66) & (v > 0.5) & (v < 0.88), np.minimum(bag * 0.8 + 12, 255))
        paint("bag", np.broadcast_to(np.abs(v - 0.12) < 0.02, (ROWS, COLUMNS)), second)
    elif person.bag == "shopping bag":
        paint("bag", (np.abs(v - 0.6) < 0.15) & (np.abs(side) < 0.2), second)
    part("detail")[:] = 0.8 * bag

    # cloth is not flat: soft folds, a little stronger on wide garments; skin and shoes get less
    for name, amount in (
        ("torso", 0.06),
        ("sleeve", 0.07),
        ("forearm", 0.06),
        ("hips", 0.05),
        ("thigh", 0.06),
        ("shin", 0.055),
        ("skirt", 0.12),
        ("hair", 0.12),
        ("bag", 0.06),
        ("hat", 0.05),
    ):
        folds = _smooth(s, ROWS, COLUMNS, (8, 12) if name != "skirt" else (3, 16))
        folds = folds * (np.abs(part(name) - skin).sum(-1) > 6)  # skin has none
        part(name)[:] *= (1 + amount * folds)[..., None]
    part("torso")[:] *= (1 - 0.16 * np.clip((side < 0.16) * (1 - np.abs(vt - 0.12) / 0.1), 0, 1))[..., None]  # armpits
    part("thigh")[:] *= (0.86 + 0.14 * np.clip(v / 0.25, 0, 1))[..., None]
    result = np.clip(atlas + 0.5, 0, 255).astype(np.uint8).reshape(-1, 3)
    result.setflags(write=False)
    return result
