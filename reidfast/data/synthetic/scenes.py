# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Cameras: where they hang, what stands behind the people they see, and what they do to colours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from reidfast.data.synthetic.streams import Stream

KINDS = ("street", "park", "plaza", "hall", "car park", "campus")
SCENE_WIDTHS = 10  # how many picture widths of background a camera has


@dataclass(frozen=True)
class Camera:
    """One camera of a world.

    `yaw` and `spread`: the direction from which it mostly sees people, and how far they turn from it (radians).
    `gain`, `gamma`, `contrast`, `saturation`: what it does to colours. `blur` in pixels at a height of 128, `noise` in
    grey levels, `quality` of its JPEG.
    """

    camid: int
    kind: str
    yaw: float
    spread: float
    pitch: float
    light: tuple[float, float, float]
    ambient: float
    gain: tuple[float, float, float]
    gamma: float
    contrast: float
    saturation: float
    ramp: tuple[float, float]
    blur: float
    noise: float
    quality: int


def draw_camera(seed: int, camid: int, difficulty: float) -> Camera:
    """The camera `camid` of a world. At difficulty 0 all cameras see the same way; at 1 no two agree."""
    s, d = Stream(seed, "camera", camid), difficulty
    side = s.uniform(-0.8, 0.8)
    warm = s.normal(0, 0.16 * d)
    green = s.normal(0, 0.05 * d)
    exposure = math.exp(s.normal(0, 0.3 * d))
    return Camera(
        camid=camid,
        kind=KINDS[(camid + s.integer(2)) % len(KINDS)],
        yaw=s.uniform(-math.pi, math.pi) * min(1.0, 1.4 * d),
        spread=0.25 + 0.9 * d,
        pitch=0.06 + s.uniform(0, 0.12 + 0.4 * d),
        light=(side, -0.35, math.sqrt(max(0.2, 1 - side * side))),
        ambient=s.uniform(0.5, 0.8),
        gain=(exposure * math.exp(warm), exposure * math.exp(green), exposure * math.exp(-warm)),
        gamma=math.exp(s.normal(0, 0.2 * d)),
        contrast=1 + s.uniform(-0.35, 0.15) * d,
        saturation=1 + s.uniform(-0.55, 0.2) * d,
        ramp=(s.normal(0, 0.25 * d), s.normal(0, 0.2 * d)),
        blur=s.uniform(0, 1.3) * d,
        noise=1.2 + s.uniform(0, 8) * d,
        quality=round(92 - s.uniform(0, 45) * d),
    )


def _shade(colour: tuple[float, ...], factor: float) -> tuple[int, int, int]:
    r, g, b = (max(0, min(255, round(c * factor))) for c in colour)
    return r, g, b


def _tone(s: Stream, *options: tuple[int, int, int]) -> tuple[int, int, int]:
    return _shade(s.choice(options), s.uniform(0.8, 1.15))


class _Painter:
    """Draws the things that stand about. All lengths are in units of one picture height."""

    def __init__(self, s: Stream, height: int, width: int) -> None:
        self.s, self.h, self.w = s, height, width
        self.scale = 2
        self.image = Image.new("RGB", (width * self.scale, height * self.scale))
        self.draw = ImageDraw.Draw(self.image)
        self.unit = height * self.scale

    def rect(self, x: float, y: float, w: float, h: float, colour: tuple[int, int, int], radius: float = 0.0) -> None:
        u = self.unit
        box = (x * u, y * u, max((x + w) * u, x * u), max((y + h) * u, y * u))
        if radius:
            self.draw.rounded_rectangle(box, radius * u, fill=colour)
        else:
            self.draw.rectangle(box, fill=colour)

    def disc(self, x: float, y: float, rx: float, ry: float, colour: tuple[int, int, int]) -> None:
        u = self.unit
        self.draw.ellipse(((x - rx) * u, (y - ry) * u, (x + rx) * u, (y + ry) * u), fill=colour)

    def line(self, points: list[tuple[float, float]], colour: tuple[int, int, int], width: float) -> None:
        u = self.unit
        self.draw.line([(x * u, y * u) for x, y in points], fill=colour, width=max(1, round(width * u)))

    def polygon(self, points: list[tuple[float, float]], colour: tuple[int, int, int]) -> None:
        u = self.unit
        self.draw.polygon([(x * u, y * u) for x, y in points], fill=colour)

    def stretches(self, mean: float) -> list[tuple[float, float]]:
        """Divides the whole width into pieces (left, right)."""
        wide = self.w / self.h
        cuts = [0.0]
        while cuts[-1] < wide:
            cuts.append(cuts[-1] + mean * self.s.uniform(0.4, 1.6))
        return list(zip(cuts[:-1], cuts[1:], strict=True))

    def bricks(
        self, left: float, right: float, top: float, bottom: float, colour: tuple[int, int, int], size: float
    ) -> None:
        """Courses of bricks or slabs in a rectangle."""
        y, row = top, 0
        while y < bottom:
            x = left - size * 2.2 * (row % 2) / 2
            while x < right:
                self.rect(x, y, size * 2.1, min(size * 0.93, bottom - y), _shade(colour, self.s.uniform(0.9, 1.1)))
                x += size * 2.2
            y, row = y + size, row + 1

    def ground(self, top: float, colour: tuple[int, int, int], kind: str) -> None:
        """The floor from the line `top` down, with lines that run towards the camera and across."""
        s, wide = self.s, self.w / self.h
        self.rect(0, top, wide, 1.2 - top, colour)
        for left, right in self.stretches(0.8):
            if s.chance(0.55):
                lean, bright = s.uniform(-0.4, 0.4), s.uniform(0.8, 1.2)
                tint = _shade(tuple(c * s.uniform(0.93, 1.07) for c in colour), bright)
                self.polygon([(left, top), (right, top), (right + lean, 1.1), (left + lean, 1.1)], tint)
            if s.chance(0.3):  # a shadow falls across
                x, lean = s.uniform(left, right), s.uniform(-0.8, 0.8)
                dark = _shade(colour, s.uniform(0.45, 0.65))
                self.polygon([(x, top), (x + 0.25, top), (x + 0.5 + lean, 1.1), (x + lean, 1.1)], dark)
        if kind == "grass":
            for _ in range(500):
                y = top + (1.05 - top) * s.random()
                x = wide * s.random()
                self.line([(x, y), (x + 0.004, y - 0.02 * (0.4 + y))], _shade(colour, s.uniform(0.75, 1.25)), 0.006)
        else:
            darker, across = _shade(colour, s.uniform(0.82, 0.93)), s.uniform(0.05, 0.14)
            y, step = top, across * 0.25
            while y < 1.1:
                self.line([(0, y), (wide, y)], darker, 0.005)
                step *= 1.35
                y += step
            vanish = wide / 2
            for k in range(-24, 25):
                self.line([(vanish + k * 0.16 * 0.7, top), (vanish + k * 0.16 * 2.4, 1.1)], darker, 0.004)
            for _ in range(40):
                x, y = wide * s.random(), top + (1.0 - top) * s.random()
                self.disc(x, y, 0.03 * s.random(), 0.008, _shade(colour, s.uniform(0.85, 1.08)))

    def window(self, x: float, y: float, w: float, h: float) -> None:
        frame = _tone(self.s, (210, 210, 205), (90, 80, 70), (60, 64, 70))
        self.rect(x, y, w, h, frame)
        glass = _tone(self.s, (70, 90, 105), (130, 155, 175), (40, 46, 54), (190, 180, 140))
        self.rect(x + 0.012, y + 0.012, w - 0.024, h - 0.024, glass)
        self.polygon(
            [(x + w * 0.2, y + 0.014), (x + w * 0.45, y + 0.014), (x + w * 0.15, y + h * 0.7)], _shade(glass, 1.2)
        )
        self.line([(x + w / 2, y), (x + w / 2, y + h)], frame, 0.01)

    def car(self, x: float, y: float, size: float) -> None:
        paint = _tone(
            self.s, (190, 195, 200), (40, 44, 50), (150, 30, 34), (40, 70, 130), (225, 225, 222), (110, 112, 116)
        )
        self.disc(x + size * 0.8, y, size * 0.85, size * 0.06, (48, 48, 50))
        self.rect(x, y - size * 0.36, size * 1.6, size * 0.28, paint, size * 0.1)
        roof = [
            (x + size * 0.25, y - size * 0.34),
            (x + size * 0.5, y - size * 0.58),
            (x + size * 1.1, y - size * 0.58),
        ]
        self.polygon([*roof, (x + size * 1.4, y - size * 0.34)], paint)
        pane = [
            (x + size * 0.36, y - size * 0.36),
            (x + size * 0.54, y - size * 0.53),
            (x + size * 1.05, y - size * 0.53),
        ]
        self.polygon([*pane, (x + size * 1.26, y - size * 0.36)], (60, 72, 84))
        for at in (0.35, 1.25):
            self.disc(x + size * at, y - size * 0.09, size * 0.13, size * 0.13, (30, 30, 32))
            self.disc(x + size * at, y - size * 0.09, size * 0.06, size * 0.06, (150, 150, 152))

    def tree(self, x: float, y: float, size: float) -> None:
        trunk = _tone(self.s, (84, 66, 50), (100, 88, 76))
        self.rect(x - size * 0.04, y - size * 0.55, size * 0.08, size * 0.55, trunk)
        leaf = _tone(self.s, (58, 96, 50), (84, 116, 60), (120, 112, 56), (44, 78, 52))
        for _ in range(26):
            a, r = self.s.uniform(0, 6.3), self.s.uniform(0, 0.3)
            cx, cy = x + size * r * math.cos(a), y - size * (0.75 + 0.8 * r * math.sin(a))
            self.disc(cx, cy, size * 0.13, size * 0.11, _shade(leaf, self.s.uniform(0.72, 1.25)))

    def bush(self, x: float, y: float, size: float) -> None:
        leaf = _tone(self.s, (54, 92, 48), (74, 104, 56), (96, 110, 66))
        for _ in range(18):
            cx, cy = x + size * self.s.uniform(-0.5, 0.5), y - size * self.s.uniform(0.05, 0.4)
            self.disc(cx, cy, size * 0.14, size * 0.12, _shade(leaf, self.s.uniform(0.75, 1.2)))

    def pole(self, x: float, y: float) -> None:
        colour = _tone(self.s, (70, 74, 78), (120, 122, 124), (52, 66, 58))
        self.rect(x, -0.1, 0.025, y + 0.1, colour)
        self.rect(x, -0.1, 0.008, y + 0.1, _shade(colour, 1.25))
        if self.s.chance(0.6):
            sign = _tone(self.s, (190, 40, 44), (36, 90, 170), (230, 190, 40), (240, 240, 238))
            self.disc(x + 0.012, y * 0.35, 0.07, 0.07, sign)
            self.disc(x + 0.012, y * 0.35, 0.045, 0.045, (236, 236, 232))

    def bicycle(self, x: float, y: float, size: float) -> None:
        colour, u = _tone(self.s, (40, 42, 46), (170, 40, 40), (50, 90, 150)), self.unit
        for at in (0.0, 0.62):
            cx, cy, r = x + size * at, y - size * 0.2, size * 0.2
            box = ((cx - r) * u, (cy - r) * u, (cx + r) * u, (cy + r) * u)
            self.draw.ellipse(box, outline=(40, 40, 42), width=max(1, round(0.012 * u)))
        frame = [
            (0.0, 0.2),
            (0.22, 0.46),
            (0.52, 0.46),
            (0.62, 0.2),
            (0.28, 0.2),
            (0.22, 0.46),
            (0.28, 0.2),
            (0.52, 0.46),
        ]
        self.line([(x + size * a, y - size * b) for a, b in frame], colour, 0.014)

    def poster(self, x: float, y: float, w: float, h: float) -> None:
        paper = _tone(self.s, (220, 214, 196), (200, 60, 50), (50, 100, 160), (230, 200, 70), (60, 130, 90))
        self.rect(x, y, w, h, paper)
        self.rect(x + 0.1 * w, y + 0.1 * h, 0.8 * w, 0.4 * h, _shade(paper, self.s.choice((0.6, 1.3))))
        for k in range(3):
            self.rect(
                x + 0.12 * w, y + (0.6 + 0.12 * k) * h, w * self.s.uniform(0.4, 0.76), 0.05 * h, _shade(paper, 0.5)
            )

    def bench(self, x: float, y: float) -> None:
        wood = _tone(self.s, (130, 92, 60), (96, 100, 104))
        for k in (0.0, 0.05, 0.1):
            self.rect(x, y - 0.26 + k, 0.5, 0.035, wood)
        self.rect(x, y - 0.12, 0.5, 0.045, _shade(wood, 0.8))
        for at in (0.04, 0.43):
            self.rect(x + at, y - 0.1, 0.03, 0.12, (56, 58, 60))


@lru_cache(maxsize=64)
def scene(seed: int, camid: int, kind: str, pitch: float, height: int, width: int, clutter: float) -> NDArray[np.uint8]:
    """The background a camera sees, [height, SCENE_WIDTHS * width, 3]; people stand in front of parts of it."""
    s = Stream(seed, "scene", camid)
    total = SCENE_WIDTHS * width
    p = _Painter(s, height, total)
    wide = total / height
    far = min(0.85, max(-0.2, s.uniform(0.45, 0.66) - 0.9 * pitch))  # where the ground begins
    amount = 0.35 + clutter

    def places(mean: float) -> list[float]:
        return [wide * s.random() for _ in range(round(mean * amount * wide / 3.5))]

    if kind == "hall":
        for left, right in p.stretches(0.8):
            wall = _tone(s, (214, 208, 194), (188, 196, 200), (200, 186, 160), (140, 150, 150))
            p.rect(left, -0.1, right - left, far + 0.2, wall)
            p.rect(left, far - 0.1, right - left, 0.1, _shade(wall, 0.75))
        for x in places(4):
            p.rect(x, far - 0.62, 0.3, 0.62, _tone(s, (120, 84, 58), (80, 92, 110), (160, 160, 158)))
            p.disc(x + 0.26, far - 0.3, 0.012, 0.012, (220, 210, 160))
        for x in places(5):
            p.poster(x, far - s.uniform(0.4, 0.6), 0.16, 0.22)
        p.ground(far, _tone(s, (176, 170, 158), (150, 152, 156), (196, 186, 170)), "tiles")
        for x in places(2):
            p.rect(x, far - 0.12, 0.34, 0.2, _tone(s, (60, 62, 68), (130, 60, 50), (70, 110, 90)), 0.02)
    elif kind == "park":
        for left, right in p.stretches(0.9):
            behind = _tone(s, (186, 204, 220), (170, 186, 190), (92, 116, 84), (120, 134, 108))
            p.rect(left, -0.1, right - left, far + 0.2, behind)
        for x in places(9):
            p.tree(x, far + 0.03, s.uniform(0.7, 1.1))
        p.ground(far, _tone(s, (96, 124, 66), (120, 130, 80), (88, 108, 70)), "grass")
        path = _tone(s, (180, 168, 144), (160, 156, 150))
        top = far + (1 - far) * s.uniform(0.2, 0.5)
        p.rect(0, top, wide, (1 - far) * 0.4, path)
        for x in places(4):
            p.bush(x, top, s.uniform(0.2, 0.4))
        for x in places(2):
            p.bench(x, top + 0.03)
    else:
        if kind in ("street", "car park", "campus", "plaza"):
            walls = (168, 120, 98), (186, 178, 164), (150, 152, 156), (206, 196, 178), (122, 110, 104), (96, 106, 118)
            for left, right in p.stretches(0.9):
                wall = _tone(s, *walls)
                p.rect(left, -0.1, right - left, far + 0.2, _shade(wall, 0.88))
                size = s.uniform(0.035, 0.06) if kind in ("street", "campus") else s.uniform(0.14, 0.25)
                p.bricks(left, right, 0, far, wall, size)
            for x in places(6):
                p.window(x, far - s.uniform(0.38, 0.55), s.uniform(0.16, 0.34), s.uniform(0.22, 0.36))
        p.ground(far, _tone(s, (140, 138, 134), (168, 162, 152), (112, 114, 118), (150, 128, 112)), "slabs")
        if kind in ("street", "car park"):
            road = far + (1 - far) * 0.12
            p.rect(0, far + 0.01, wide, road - far + 0.08, _tone(s, (88, 90, 94), (104, 104, 106)))
            for x in places(5):
                p.car(x, road + s.uniform(-0.01, 0.06), s.uniform(0.5, 0.75))
            if kind == "car park":
                for x in places(8):
                    p.line([(x, road + 0.05), (x - 0.2, 1.1)], (220, 220, 216), 0.018)
        if kind == "campus":
            for x in places(6):
                p.bicycle(x, far + s.uniform(0.05, 0.14), s.uniform(0.35, 0.5))
            for x in places(3):
                p.bush(x, far + 0.04, s.uniform(0.25, 0.5))
        if kind == "plaza":
            for x in places(4):
                p.poster(x, far - s.uniform(0.35, 0.5), 0.24, 0.34)
            for x in places(3):
                p.bench(x, far + s.uniform(0.05, 0.2))
        for x in places(3):
            p.tree(x, far + s.uniform(0.02, 0.12), s.uniform(0.7, 1.0))
        for x in places(3):
            p.pole(x, far + s.uniform(0.05, 0.3))
    image = p.image.resize((total, height), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.004 * height))
    pixels = np.asarray(image, np.float32)
    grain = np.asarray(Image.fromarray(s.noise(height // 4 + 1, total // 4 + 1)).resize((total, height)))
    result = np.clip(pixels * (1 + 0.045 * grain)[..., None] + 0.5, 0, 255).astype(np.uint8)
    result.setflags(write=False)
    return result
