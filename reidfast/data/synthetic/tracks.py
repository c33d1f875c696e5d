# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""People walking past a camera: a frame at a time, with what goes wrong known.

`Track(World(seed, difficulty), pid, camid).frame(i)` is frame i whatever was rendered before: the person a moment later
in the same walk, followed by the camera's box, and, in stretches, somebody passing in front, a pole, a wall, motion
blur, or a box that cuts the person or is in the wrong place. `.frame(i).clean` is the same moment without all that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFilter

from reidfast.data.synthetic.figure import PARTS, Figure, Floats, Pose, View, draw_figure
from reidfast.data.synthetic.people import draw_person
from reidfast.data.synthetic.scenes import SCENE_WIDTHS, scene
from reidfast.data.synthetic.streams import Stream
from reidfast.data.synthetic.world import (
    PASSERS_BY,
    Photograph,
    World,
    _expose,
    _passer_by,
    _paste,
    _pose,
    _record,
    _shadow,
    _size,
)

EVENTS = ("person", "pole", "wall", "blur", "cut", "shift")
OCCLUDERS = ("person", "pole", "wall")
_WEIGHTS = (4.0, 1.0, 1.5, 2.0, 1.5, 2.0)


@dataclass(frozen=True)
class Event:
    """Something that goes wrong from frame `start` to `stop`: its kind (of `EVENTS`), how much, and which way."""

    kind: str
    start: int
    stop: int
    strength: float
    side: int
    variant: int

    def progress(self, index: int) -> float | None:
        """0..1 within the event, None outside of it."""
        if not self.start <= index < self.stop:
            return None
        return (index - self.start + 0.5) / (self.stop - self.start)


@dataclass(frozen=True)
class TrackFrame:
    """A frame of a walk and what is known about it.

    Args:
        photograph: The picture, its parts (what can be seen of the person) and the visibility of each part.
        clean: The picture of the same moment without any event, uint8 [H,W,3]; the same where nothing goes wrong.
        clean_parts: Its parts, uint8 [H,W].
        visible: Share of the person's pixels that can be seen.
        overlap: Intersection over union of the box with the right one.
        sharpness: 1 = as sharp as the camera is; 1 / (1 + (s / 1.5)^2) for an added Gaussian blur of s pixels at
            height 128.
        event: What goes wrong, of `EVENTS`, or "none".
    """

    photograph: Photograph
    clean: NDArray[np.uint8]
    clean_parts: NDArray[np.uint8]
    visible: float
    overlap: float
    sharpness: float
    event: str

    @property
    def image(self) -> NDArray[np.uint8]:
        """The picture, uint8 [H,W,3]."""
        return self.photograph.image

    @property
    def quality(self) -> float:
        """What a perfect judge of the frame would say, 0..1: min(visible, overlap) x sharpness."""
        return min(self.visible, self.overlap) * self.sharpness


@dataclass(frozen=True)
class _Moment:
    """Geometry of one frame, in units of the picture's height and width."""

    pose: Pose
    yaw: float
    zoom: float
    shift_x: float
    shift_y: float
    scroll: float


@dataclass(frozen=True)
class Track:
    """The walk number `number` of person `pid` before camera `camid`; depends on nothing else.

    Args:
        world: Where.
        pid: Who.
        camid: Seen by whom.
        number: Which of this person's walks there.
        length: Frames.
        trouble: Share of the frames, on average, in which something goes wrong.
        events: What may go wrong, of `EVENTS`.
    """

    world: World
    pid: int
    camid: int
    number: int = 0
    length: int = 32
    trouble: float = 0.4
    events: tuple[str, ...] = EVENTS

    def __post_init__(self) -> None:
        if self.length < 1 or not 0 <= self.trouble <= 1:
            raise ValueError(f"Track: expected length >= 1 and trouble in [0, 1], got {self.length} and {self.trouble}")
        unknown = set(self.events) - set(EVENTS)
        if unknown or (not self.events and self.trouble):
            raise ValueError(
                f"Track: expected events among {', '.join(EVENTS)}, got {', '.join(self.events) or 'none'}"
            )

    def __len__(self) -> int:
        return self.length

    def _stream(self, domain: str, index: int = 0) -> Stream:
        return Stream(self.world.seed, domain, self.pid, self.camid, (self.number << 32) + index)

    @cached_property
    def _walk(self) -> tuple[Pose, float, float, float, float]:
        """Pose of the first frame, phase a frame, yaw of the first frame, turn over the walk, start in the scene."""
        d, s = self.world.difficulty, self._stream("walk")
        camera, person = self.world.camera(self.camid), self.world.person(self.pid)
        pose = replace(_pose(s, person), swing=s.uniform(0.6, 1.0), head_turn=s.normal(0, 0.1))
        yaw = camera.yaw + s.normal(0, 0.5 * camera.spread) + (math.pi if s.chance(0.35 * d) else 0.0)
        return pose, 2 * math.pi / s.uniform(9, 14), yaw, s.normal(0, 0.3), s.random()

    @cached_property
    def happenings(self) -> tuple[Event, ...]:
        """What goes wrong, in order."""
        if self.trouble == 0:
            return ()
        s, found = self._stream("events"), []
        weights = [_WEIGHTS[EVENTS.index(e)] for e in self.events]
        mean = max(2.0, 0.22 * self.length)
        gap = mean * (1 - self.trouble) / self.trouble
        at = -s.uniform(0, mean + gap)
        while at < self.length:
            at += gap * s.uniform(0.4, 1.6)
            stop = at + mean * s.uniform(0.6, 1.4)
            event = Event(
                s.choice(self.events, weights), round(at), round(stop), s.random(), s.choice((-1, 1)), s.integer(1000)
            )
            if event.stop > 0 and event.start < self.length and event.stop > event.start:
                found.append(event)
            at = stop
        return tuple(found)

    def event(self, index: int) -> Event | None:
        """What goes wrong in frame `index`."""
        return next((e for e in self.happenings if e.start <= index < e.stop), None)

    def _moment(self, index: int) -> _Moment:
        d, s = self.world.difficulty, self._stream("jitter", index)
        pose, speed, yaw, turn, start = self._walk
        yaw += turn * (index / max(1, self.length - 1) - 0.5)
        stride = self.world.person(self.pid).stride * pose.swing
        small = 0.006 + 0.018 * d
        return _Moment(
            replace(pose, phase=pose.phase + speed * index),
            yaw,
            1 + s.normal(0, small),
            s.normal(0, small),
            s.normal(0, 0.5 * small),
            start + 0.75 * stride * speed / (2 * math.pi) * index * math.sin(yaw),
        )

    def frame(self, index: int) -> TrackFrame:
        """Frame `index` of the walk."""
        i = range(self.length)[index]
        moment, event = self._moment(i), self.event(i)
        photograph, visible, sharpness = self._render(i, moment, event)
        if event is None:
            return TrackFrame(photograph, photograph.image, photograph.parts, visible, 1.0, sharpness, "none")
        clean, _, _ = self._render(i, moment, None)
        boxed = _boxed(moment, event, i)
        overlap = 1.0 if boxed is moment else _overlap(boxed, moment)
        return TrackFrame(photograph, clean.image, clean.parts, visible, overlap, sharpness, event.kind)

    def _render(self, index: int, moment: _Moment, event: Event | None) -> tuple[Photograph, float, float]:
        world, d = self.world, self.world.difficulty
        h, w = world.height, world.width
        person, camera = world.person(self.pid), world.camera(self.camid)
        moment = _boxed(moment, event, index)
        size = _size(world, camera.pitch) * moment.zoom
        view = View(moment.yaw, camera.pitch, size, camera.light, camera.ambient)
        figure = draw_figure(world.seed, person, moment.pose, view, world.supersample)

        canvas = self._background(moment)
        foot_x = w * (0.5 + moment.shift_x)
        foot_y = h * (0.96 + moment.shift_y) - 0.09 * size * math.sin(camera.pitch)
        _shadow(canvas, foot_x, foot_y, size, 0.5)
        parts = np.zeros((h, w), np.uint8)
        left, top = round(foot_x - figure.origin[0]), round(foot_y - figure.origin[1])
        touched = _paste(canvas, figure.rgb, figure.alpha, left, top)
        if touched:
            parts[touched[0]] = figure.part[touched[1]]
        if event is not None and event.kind in OCCLUDERS:
            self._occlude(canvas, parts, event, index, moment.zoom)
        seen = np.bincount(parts.reshape(-1), minlength=len(PARTS) + 1)[1:]
        with np.errstate(invalid="ignore", divide="ignore"):
            visibility = np.where(figure.pixels > 0, seen / figure.pixels, np.nan).astype(np.float32)

        exposure = math.exp(self._stream("light").normal(0, 0.12 * d))
        picture, parts = _expose(camera, canvas, parts, exposure, w)
        added, wave = 0.0, 1.0
        if event is not None and event.kind == "blur":
            u = event.progress(index)
            wave = math.sin(math.pi * (u if u is not None else 0.5)) ** 0.5
            added = (1.6 + 2.4 * event.strength) * wave
        blur = math.hypot(camera.blur, added) * h / 128
        if blur > 0.25:
            picture = picture.filter(ImageFilter.GaussianBlur(blur))
        jpeg, image = _record(self._stream("sensor", index), camera, picture, d)
        occluder = event.kind if event is not None and event.kind in OCCLUDERS else "none"
        photograph = Photograph(jpeg, image, parts, visibility, math.remainder(moment.yaw, 2 * math.pi), occluder)
        return photograph, float(seen.sum() / max(1, figure.pixels.sum())), 1 / (1 + (added / 1.5) ** 2)

    def _background(self, moment: _Moment) -> Floats:
        """The part of the scene behind the person: it moves against the walk."""
        world, camera = self.world, self.world.camera(self.camid)
        h, w, d = world.height, world.width, world.difficulty
        picture = scene(world.seed, self.camid, camera.kind, round(camera.pitch, 6), h, w, d)
        room = (SCENE_WIDTHS - 1) * w
        at = moment.scroll * h % (2 * room)
        at = round(at if at <= room else 2 * room - at)  # turns round at the scene's ends
        canvas = picture[:, at : at + w].astype(np.float32)
        for k in range(PASSERS_BY // 2):  # people standing about
            s = Stream(world.seed, "standing", self.camid, k)
            x, y = s.random() * SCENE_WIDTHS * w - at, h * s.uniform(0.78, 0.9)
            if s.chance(0.5 * d) and -0.5 * w < x < 1.5 * w:
                other = _passer_by(world, self.camid, k)
                _shadow(canvas, x, y, 0.7 * h, 0.35)
                _paste(canvas, other.rgb, other.alpha, round(x - other.origin[0]), round(y - other.origin[1]))
        return canvas

    def _stranger(self, event: Event, index: int) -> Figure:
        """Somebody of no identity, walking across."""
        world, camera = self.world, self.world.camera(self.camid)
        s = Stream(world.seed, "crossing", self.camid, event.variant)
        person = draw_person(world.seed, 7_000_000 + event.variant, world.difficulty, domain="stranger")
        size = _size(world, camera.pitch) * s.uniform(0.98, 1.15)
        pose = replace(_pose(s, person), swing=s.uniform(0.6, 1.0))
        pose = replace(pose, phase=pose.phase + 2 * math.pi * (index - event.start) / s.uniform(9, 14))
        yaw = event.side * (math.pi / 2 + s.normal(0, 0.25))
        view = View(yaw, camera.pitch, size, camera.light, camera.ambient)
        return draw_figure(world.seed, person, pose, view, world.supersample)

    def _occlude(self, canvas: Floats, parts: NDArray[np.uint8], event: Event, index: int, zoom: float) -> None:
        h, w = parts.shape
        u = event.progress(index)
        at = event.side * (2 * (0.5 if u is None else u) - 1)  # from -1 to 1, or back
        if event.kind == "person":
            other = self._stranger(event, index)
            left = round(w * (0.5 + 0.62 * at) - other.origin[0])
            top = round(h * (1.0 + 0.12 * event.strength) - other.origin[1])
            touched = _paste(canvas, other.rgb, other.alpha, left, top)
            if touched:
                parts[touched[0]][other.alpha[touched[1]] > 0.5] = 0
            return
        s = Stream(self.world.seed, "obstacle", self.camid, event.variant)
        if event.kind == "pole":
            wide, top = w * (0.12 + 0.16 * event.strength), 0
            colours = ((86, 90, 94), (120, 104, 84), (60, 74, 66), (150, 150, 148))
        else:
            wide, top = 2.4 * w, round(h * (0.45 + 0.25 * event.strength))
            colours = ((150, 146, 140), (60, 62, 68), (170, 40, 40), (60, 92, 54))
        base = np.array(s.choice(colours), np.float32)
        middle = 0.5 * w + at * 0.5 * (w + wide)
        x0, x1 = max(0, round(middle - wide / 2)), min(w, round(middle + wide / 2))
        if x0 >= x1:
            return
        across = (np.arange(x0, x1) + 0.5 - middle) / (wide / 2)
        lit = 0.65 + 0.45 * np.sqrt(np.clip(1 - across**2, 0, 1)) if event.kind == "pole" else np.ones(x1 - x0)
        canvas[top:, x0:x1] = base * lit.astype(np.float32)[None, :, None]
        parts[top:, x0:x1] = 0


def _boxed(moment: _Moment, event: Event | None, index: int) -> _Moment:
    """The moment as a wrong box shows it."""
    if event is None or event.kind not in ("cut", "shift"):
        return moment
    if event.kind == "cut":  # the legs are lost
        zoom = 1.3 + 0.35 * event.strength
        return replace(moment, zoom=moment.zoom * zoom, shift_y=moment.shift_y + 0.9 * (zoom - 1))
    u = event.progress(index)
    wave = math.sin(math.pi * (0.5 if u is None else u)) ** 0.5
    if event.variant % 3 == 0:  # too low or too high
        return replace(moment, shift_y=moment.shift_y + event.side * (0.2 + 0.2 * event.strength) * wave)
    return replace(moment, shift_x=moment.shift_x + event.side * (0.35 + 0.3 * event.strength) * wave)


def _overlap(shown: _Moment, right: _Moment) -> float:
    """IoU of the box behind `shown` and the one behind `right`; boxes in the right box's units, foot line at 0.96."""
    k = shown.zoom / right.zoom  # the shown box is 1 / k as large

    def box(zoom: float, dx: float, dy: float) -> tuple[float, float, float, float]:
        """Where the picture's corners lie about the person's foot, in pictures of zoom 1."""
        return ((-0.5 - dx) / zoom, (-0.96 - dy) / zoom, (0.5 - dx) / zoom, (0.04 - dy) / zoom)

    a = box(k, shown.shift_x, shown.shift_y)
    b = box(1.0, right.shift_x, right.shift_y)
    inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return inter / (1 / k**2 + 1 - inter)
