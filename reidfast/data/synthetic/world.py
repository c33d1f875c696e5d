# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""One photograph: a person, a moment, a camera."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from reidfast.data.synthetic.figure import PARTS, Figure, Floats, Pose, View, draw_figure
from reidfast.data.synthetic.people import Person, draw_person
from reidfast.data.synthetic.scenes import SCENE_WIDTHS, Camera, draw_camera, scene
from reidfast.data.synthetic.streams import Stream

PASSERS_BY = 10  # figures a camera keeps ready to stand in the way


@dataclass(frozen=True)
class World:
    """Everything that decides what synthetic people look like.

    Args:
        seed: Seed of the people, the cameras and the moments.
        difficulty: 0 = plain views of people who dress unlike, 1 = all that makes re-identification hard: look-alike
            clothes, any side of the body, colour casts, blur, noise, occlusion, wrong crops.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        supersample: Figures are drawn this many times larger and averaged.
    """

    seed: int = 0
    difficulty: float = 0.5
    height: int = 128
    width: int = 64
    supersample: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"World: expected difficulty in [0, 1], got {self.difficulty}")
        if self.height < 32 or self.width < 16:
            raise ValueError(f"World: expected at least 32 x 16 pixels, got {self.height} x {self.width}")
        if not 1 <= self.supersample <= 8:
            raise ValueError(f"World: expected supersample in 1..8, got {self.supersample}")

    def person(self, pid: int) -> Person:
        """Who `pid` is."""
        return draw_person(self.seed, pid, self.difficulty)

    def camera(self, camid: int) -> Camera:
        """What `camid` sees and how."""
        return draw_camera(self.seed, camid, self.difficulty)

    def render(self, pid: int, camid: int, index: int = 0) -> Photograph:
        """The picture number `index` that camera `camid` took of person `pid`; depends on nothing else."""
        return _photograph(self, int(pid), int(camid), int(index))


@dataclass(frozen=True)
class Photograph:
    """A picture and what is known about it.

    Args:
        jpeg: The file's bytes.
        image: What they decode to, uint8 [H,W,3].
        parts: Which part of the person each pixel shows, uint8 [H,W]: 0 none, then 1 + index into `PARTS`.
        visibility: Share of each part of `PARTS` that can be seen (not cropped away, not hidden), float32; NaN where
            the person has none (nothing carried) or turns it away.
        yaw: Direction of the body, 0 = facing the camera, radians.
        occluder: What stands in the way: `none`, `person`, `pole` or `block`.
    """

    jpeg: bytes
    image: NDArray[np.uint8]
    parts: NDArray[np.uint8]
    visibility: Floats
    yaw: float
    occluder: str

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where the person can be seen."""
        return self.parts > 0


def _size(world: World, pitch: float) -> float:
    """Pixels a body height so that a person fills the picture from 4 to 96 % of its height."""
    return 0.92 * world.height / (math.cos(pitch) + 0.09)


def _pose(s: Stream, person: Person) -> Pose:
    walking = s.chance(0.7)
    arms = s.choice(("free", "phone", "pockets", "straps"), (6, 1, 1, 1 if person.bag == "backpack" else 0))
    if person.bag in ("handbag", "shopping bag") and arms in ("free", "pockets"):
        arms = "carry"
    return Pose(
        phase=s.uniform(0, 2 * math.pi),
        swing=s.uniform(0.5, 1.0) if walking else s.uniform(0, 0.22),
        arms=arms,
        lean=s.normal(0.03, 0.03),
        head_turn=s.normal(0, 0.25),
    )


@lru_cache(maxsize=512)
def _passer_by(world: World, camid: int, k: int) -> Figure:
    """A person of no identity, seen by this camera."""
    s = Stream(world.seed, "passerby", camid, k)
    camera = world.camera(camid)
    person = draw_person(world.seed, camid * PASSERS_BY + k, world.difficulty, domain="stranger")
    size = _size(world, camera.pitch) * (s.uniform(0.5, 0.85) if k < PASSERS_BY // 2 else s.uniform(0.95, 1.15))
    view = View(s.uniform(-math.pi, math.pi), camera.pitch, size, camera.light, camera.ambient)
    return draw_figure(world.seed, person, _pose(s, person), view, world.supersample)


def _paste(
    canvas: Floats, rgb: Floats, alpha: Floats, left: int, top: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Lays premultiplied colours over the canvas; returns the rectangles touched in canvas and source."""
    height, width = canvas.shape[:2]
    h, w = alpha.shape
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + h, height), min(left + w, width)
    if y0 >= y1 or x0 >= x1:
        return None
    there, here = (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    region = canvas[there]
    region *= 1 - alpha[here][..., None]
    region += rgb[here]
    return there, here


def _shadow(canvas: Floats, x: float, y: float, size: float, strength: float) -> None:
    """A soft dark spot on the ground."""
    height, width = canvas.shape[:2]
    top, bottom = max(int(y - 0.05 * size), 0), min(int(y + 0.05 * size) + 1, height)
    if top >= bottom:
        return
    dy = ((np.arange(top, bottom, dtype=np.float32) - np.float32(y)) / np.float32(0.022 * size)) ** 2
    dx = ((np.arange(width, dtype=np.float32) - np.float32(x)) / np.float32(0.13 * size)) ** 2
    spot = np.exp(-(dy[:, None] + dx[None, :]))
    canvas[top:bottom] *= (1 - np.float32(strength) * spot)[..., None]


def _occlude(s: Stream, world: World, camid: int, canvas: Floats, parts: NDArray[np.uint8]) -> str:
    """Something between camera and person."""
    h, w = parts.shape
    kind = s.choice(("person", "pole", "block"), (4, 2, 3))
    if kind == "person":
        other = _passer_by(world, camid, PASSERS_BY // 2 + s.integer(PASSERS_BY - PASSERS_BY // 2))
        side = s.choice((-1, 1))
        left = round(w / 2 + side * w * s.uniform(0.22, 0.48) - other.origin[0])
        top = round(h * s.uniform(0.97, 1.2) - other.origin[1])
        touched = _paste(canvas, other.rgb, other.alpha, left, top)
        if touched:
            parts[touched[0]][other.alpha[touched[1]] > 0.5] = 0
    elif kind == "pole":
        wide = max(2, round(w * s.uniform(0.06, 0.16)))
        x = int(s.uniform(0.1, 0.9) * w - wide / 2)
        x0, x1 = max(x, 0), min(x + wide, w)
        base = np.array(s.choice(((86, 90, 94), (120, 104, 84), (60, 74, 66), (150, 150, 148))), np.float32)
        round_ = 0.6 + 0.5 * np.sqrt(np.clip(1 - ((np.arange(x0, x1) - x + 0.5) / wide * 2 - 1) ** 2, 0, 1))
        canvas[:, x0:x1] = base * round_.astype(np.float32)[None, :, None]
        parts[:, x0:x1] = 0
    else:  # a wall, a car's bonnet, a hedge: the legs are hidden
        top = int(h * s.uniform(0.55, 0.85))
        base = np.array(
            s.choice(((150, 146, 140), (60, 62, 68), (170, 40, 40), (60, 92, 54), (196, 196, 192), (50, 72, 120))),
            np.float32,
        )
        left, right = (
            (0, w) if s.chance(0.6) else ((0, int(w * s.uniform(0.4, 0.7))) if s.chance(0.5) else (int(w * 0.4), w))
        )
        lit = 1.1 - 0.35 * np.arange(h - top, dtype=np.float32) / max(1, h - top)
        grain = 1 + 0.05 * s.noise(h - top, right - left)
        canvas[top:, left:right] = base * (lit[:, None] * grain)[..., None]
        canvas[top : top + 1, left:right] *= 1.15
        parts[top:, left:right] = 0
    return kind


def _expose(
    camera: Camera, canvas: Floats, parts: NDArray[np.uint8], exposure: float, full: int
) -> tuple[Image.Image, NDArray[np.uint8]]:
    """The canvas [h,w,3] in the camera's colours, and the parts, stretched to the width `full`; changes the canvas."""
    h, w = parts.shape
    ramp_x = np.float32(camera.ramp[0]) * np.linspace(-1, 1, w, dtype=np.float32)
    ramp_y = np.float32(camera.ramp[1]) * np.linspace(-1, 1, h, dtype=np.float32)
    canvas *= (1 + ramp_y[:, None] + ramp_x[None, :])[..., None]
    grey = canvas @ np.array([0.299, 0.587, 0.114], np.float32)
    canvas -= grey[..., None]
    canvas *= np.float32(camera.saturation)
    canvas += grey[..., None]
    np.clip(canvas, 0, 255, out=canvas)
    picture = Image.fromarray((canvas + 0.5).astype(np.uint8))
    if w != full:
        picture = picture.resize((full, h), Image.Resampling.BILINEAR)
        parts = parts[:, np.minimum((np.arange(full) * w + w // 2) // full, w - 1)]
    levels = np.arange(256) / 255
    tables = [
        np.clip(255 * ((levels * g * exposure).clip(0, 1) ** camera.gamma - 0.5) * camera.contrast + 127.5, 0, 255)
        for g in camera.gain
    ]
    return picture.point(np.round(np.concatenate(tables)).astype(np.uint8).tolist()), parts


def _record(s: Stream, camera: Camera, picture: Image.Image, difficulty: float) -> tuple[bytes, NDArray[np.uint8]]:
    """Sensor noise and JPEG: the file's bytes, and what they decode to."""
    h, w = picture.height, picture.width
    noisy = np.asarray(picture, np.float32) + np.float32(camera.noise) * s.noise(h, w, 1)
    if difficulty > 0:
        noisy += np.float32(0.4 * camera.noise) * s.noise(h, w, 3)
    buffer = io.BytesIO()
    noisy_picture = Image.fromarray(np.clip(noisy + 0.5, 0, 255).astype(np.uint8))
    noisy_picture.save(buffer, "JPEG", quality=max(30, camera.quality - s.integer(8)))
    jpeg = buffer.getvalue()
    with Image.open(io.BytesIO(jpeg)) as decoded:
        return jpeg, np.array(decoded)


def _photograph(world: World, pid: int, camid: int, index: int) -> Photograph:
    d, h, w = world.difficulty, world.height, world.width
    s = Stream(world.seed, "moment", pid, camid, index)
    person, camera = world.person(pid), world.camera(camid)

    # the moment
    yaw = camera.yaw + s.normal(0, camera.spread)
    if s.chance(0.35 * d):
        yaw += math.pi  # the same way back
    zoom = 1 + s.normal(0, 0.015 + 0.07 * d)
    shift_x, shift_y = s.normal(0, 0.015 + 0.07 * d), s.normal(0, 0.006 + 0.035 * d)
    if s.chance(0.18 * d):  # the detector lost the legs, or took in too much
        zoom, shift_y = (s.uniform(1.2, 1.5), s.uniform(0.2, 0.4)) if s.chance(0.6) else (s.uniform(0.65, 0.8), 0.0)
    pitch = camera.pitch + s.normal(0, 0.02)
    size = _size(world, pitch) * zoom
    sun = s.normal(0, 0.15)
    light = (camera.light[0] + sun, camera.light[1], camera.light[2])
    view = View(yaw, pitch, size, light, camera.ambient)
    figure = draw_figure(world.seed, person, _pose(s, person), view, world.supersample)
    # a detector's box is as wide as the person, and is then stretched to the picture's width
    full, tight = w, figure.alpha.shape[1] / zoom * (1.1 + abs(s.normal(0, 0.04 + 0.16 * d)))
    w = min(full, max(round(0.68 * full), round(tight)))

    # the place
    background = scene(world.seed, camid, camera.kind, round(camera.pitch, 6), h, full, d)
    at = s.integer(SCENE_WIDTHS * full - w)
    canvas = background[:, at : at + w].astype(np.float32)
    foot_x = w * (0.5 + shift_x)
    foot_y = h * (0.96 + shift_y) - 0.09 * size * math.sin(pitch)
    if zoom > 1.1:
        foot_y = h * (0.96 + shift_y) + 0.5 * (zoom - 1.2) * h
    for _ in range(2):
        if s.chance(0.45 * d):
            other = _passer_by(world, camid, s.integer(PASSERS_BY // 2))
            x, y = w * s.uniform(-0.1, 1.1), foot_y - h * s.uniform(0.05, 0.2)
            _shadow(canvas, x, y, 0.7 * size, 0.35)
            _paste(canvas, other.rgb, other.alpha, round(x - other.origin[0]), round(y - other.origin[1]))
    _shadow(canvas, foot_x, foot_y, size, 0.5)
    parts = np.zeros((h, w), np.uint8)
    touched = _paste(
        canvas, figure.rgb, figure.alpha, round(foot_x - figure.origin[0]), round(foot_y - figure.origin[1])
    )
    if touched:
        parts[touched[0]] = figure.part[touched[1]]
    occluder = _occlude(s, world, camid, canvas, parts) if s.chance(0.5 * d) else "none"
    seen = np.bincount(parts.reshape(-1), minlength=len(PARTS) + 1)[1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        visibility = np.where(figure.pixels > 0, seen / figure.pixels, np.nan).astype(np.float32)

    # the camera
    picture, parts = _expose(camera, canvas, parts, math.exp(s.normal(0, 0.12 * d)), full)
    w = full
    blur = (camera.blur + abs(s.normal(0, 0.35 * d))) * h / 128
    if s.chance(0.15 * d):  # a small, far person enlarged
        k = s.uniform(0.35, 0.6)
        picture = picture.resize((round(w * k), round(h * k)), Image.Resampling.BOX).resize(
            (w, h), Image.Resampling.BILINEAR
        )
    elif blur > 0.25:
        picture = picture.filter(ImageFilter.GaussianBlur(blur))
    jpeg, image = _record(s, camera, picture, d)
    return Photograph(jpeg, image, parts, visibility, math.remainder(yaw, 2 * math.pi), occluder)
