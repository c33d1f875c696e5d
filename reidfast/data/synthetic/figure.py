# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A person as two dozen lofts (tubes of elliptic cross-section along an axis) with a depth buffer.

Body frame, in body heights: x to the person's right-hand side of the picture when seen from the front, y forward, z up.
The camera looks along the ground at yaw 0 (the person faces it), pitched down by `pitch`. For a pixel at signed
distance s from a loft's axis with half width w there, the surface point has the angle asin(s / w) from the viewer and
depth axis + half_depth * sqrt(1 - (s / w)^2); angle minus yaw is the column of the texture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reidfast.data.synthetic.people import COLUMNS, ROWS, TEXTURE_INDEX, Person, textures

Floats = NDArray[np.float32]
PARTS = ("head", "torso", "arms", "legs", "feet", "carried")
HEAD, TORSO, ARMS, LEGS, FEET, CARRIED = range(1, 7)
_V = (np.arange(ROWS) + 0.5) / ROWS
_ROUND = np.sqrt(np.clip(1 - (2 * _V - 1) ** 2, 0, 1))
_BOX = np.clip(1 - np.abs(2 * _V - 1) ** 5, 0, 1) ** 0.2
_ENDS = np.linspace(0, 1, ROWS)
_ROW = np.arange(ROWS, dtype=np.int32)
_Q = 256
# from q in [-1, 1] to the texture columns turned by asin(q)
_ANGLE = np.arcsin(np.clip((np.arange(_Q + 1) - _Q / 2) / (_Q / 2), -1, 1))
_TURN = np.round(_ANGLE / (2 * math.pi) * COLUMNS).astype(np.int32)


@dataclass(frozen=True)
class View:
    """How a figure is seen: angles in radians, light from (right, down, viewer), `size` pixels a body height."""

    yaw: float = 0.0
    pitch: float = 0.1
    size: float = 110.0
    light: tuple[float, float, float] = (0.4, -0.3, 0.8)
    ambient: float = 0.62
    distance: float = 6.0


@dataclass(frozen=True)
class Pose:
    """A moment of walking: `phase` of the step, `swing` 0 = standing .. 1 = a long step, and what the arms do."""

    phase: float = 0.0
    swing: float = 0.0
    arms: str = "free"
    lean: float = 0.0
    head_turn: float = 0.0


@dataclass(frozen=True)
class Figure:
    """A rendered figure, premultiplied: rgb [h,w,3] float32 0..255, alpha [h,w] 0..1, part [h,w] uint8 (0 = none).

    `origin` is the pixel (x, y) of the point on the ground under the body's middle; `pixels` counts each part.
    """

    rgb: Floats
    alpha: Floats
    part: NDArray[np.uint8]
    origin: tuple[float, float]
    pixels: NDArray[np.int64]


Point = tuple[float, float, float]


def joints(person: Person, pose: Pose) -> dict[str, Point]:
    """Joint positions in the body frame, the lower foot on the ground."""
    thigh, shin = 0.235 * person.legs, 0.24 * person.legs
    hip_z, sh, hp = thigh + shin + 0.045, 0.094 * person.shoulders, 0.047 * person.hips
    amplitude = 0.46 * pose.swing * person.stride
    if person.lower in ("skirt", "long skirt", "dress"):
        amplitude *= 0.62
    out: dict[str, Point] = {}
    for side, name, phase in ((-1, "l", pose.phase), (1, "r", pose.phase + math.pi)):
        a = amplitude * math.sin(phase)
        bend = 0.06 + 1.9 * amplitude * max(0.0, math.cos(phase)) ** 1.5 + 0.25 * amplitude * max(0.0, -math.sin(phase))
        hip = (side * hp, 0.0, hip_z)
        knee = (side * hp * 0.95, thigh * math.sin(a), hip_z - thigh * math.cos(a))
        b = a - bend
        ankle = (side * hp * 0.9, knee[1] + shin * math.sin(b), knee[2] - shin * math.cos(b))
        tip = b * 0.75 if b < 0 else b * 0.4  # the foot follows the shin
        heel = (ankle[0], ankle[1] - 0.028, ankle[2] - 0.026)
        toe = (ankle[0] * 1.1, ankle[1] + 0.076 * math.cos(tip), ankle[2] - 0.028 + 0.076 * math.sin(tip))
        out.update({f"hip_{name}": hip, f"knee_{name}": knee, f"ankle_{name}": ankle})
        out.update({f"heel_{name}": heel, f"toe_{name}": toe})
        reach = -0.85 * a + 0.04
        flex, outward = 0.18 + 0.5 * amplitude, 0.06
        if pose.arms == "phone" and side == 1:
            reach, flex, outward = 0.25, 2.1, 0.02
        elif pose.arms == "straps":
            reach, flex, outward = 0.2, 2.3, 0.1
        elif pose.arms == "pockets":
            reach, flex, outward = -0.25, 0.55, 0.16
        elif pose.arms == "carry" and side == person.bag_side:
            reach, flex, outward = 0.02, 0.1, 0.08
        shoulder = (side * sh, -0.004, 0.796)
        upper, fore = 0.158, 0.15
        elbow = (
            shoulder[0] + side * upper * math.sin(outward),
            shoulder[1] + upper * math.sin(reach),
            shoulder[2] - upper * math.cos(reach) * math.cos(outward),
        )
        f = reach + flex
        inward = 0.35 if pose.arms == "pockets" else (0.3 if flex > 1 else 0.02)
        wrist = (
            elbow[0] - side * fore * math.sin(inward) * (1 if flex > 0.5 else 0.3),
            elbow[1] + fore * math.sin(f),
            elbow[2] - fore * math.cos(f),
        )
        out.update({f"shoulder_{name}": shoulder, f"elbow_{name}": elbow, f"wrist_{name}": wrist})
    ground = min(out["heel_l"][2], out["heel_r"][2], out["toe_l"][2], out["toe_r"][2]) - 0.02
    hips_to_torso = hip_z - 0.52
    for key, (x, y, z) in out.items():
        upper_body = key[:5] in ("shoul", "elbow", "wrist")
        if upper_body:  # the trunk leans forward about the hips, and follows the length of the legs
            y, z = y + math.sin(pose.lean) * (z - 0.52), z + hips_to_torso
        out[key] = (x, y, z - ground)
    out["ground"] = (0.0, 0.0, ground)
    out["trunk"] = (0.0, 0.0, hips_to_torso - ground)
    return out


class Renderer:
    """Draws lofts into a canvas with a depth buffer; colours are looked up once, at the end."""

    def __init__(self, view: View, width: int, height: int) -> None:
        self.view = view
        self.cos_yaw, self.sin_yaw = math.cos(view.yaw), math.sin(view.yaw)
        self.cos_pitch, self.sin_pitch = math.cos(view.pitch), math.sin(view.pitch)
        self.shape = (height, width)
        self.origin = (width / 2, height - 0.1 * view.size)
        self.depth = np.full(height * width, -1e9, np.float32)
        self.texel = np.zeros(height * width, np.int32)
        self.shade = np.zeros(height * width, np.float32)
        self.part = np.zeros(height * width, np.uint8)
        self.xs = np.arange(width, dtype=np.float32)[None, :] + np.float32(0.5)
        self.ys = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5)

    def project(self, p: Point) -> tuple[float, float, float, float]:
        """Body frame -> (x, y, depth in pixels, scale)."""
        x = p[0] * self.cos_yaw + p[1] * self.sin_yaw
        d = -p[0] * self.sin_yaw + p[1] * self.cos_yaw
        up = p[2] * self.cos_pitch - d * self.sin_pitch
        d = d * self.cos_pitch + p[2] * self.sin_pitch
        scale = self.view.size / (1 - (d - 0.5 * self.sin_pitch) / self.view.distance)
        return self.origin[0] + x * scale, self.origin[1] - up * scale, d * self.view.size, scale

    def loft(
        self,
        start: Point,
        end: Point,
        across: Any,
        along: Any,
        texture: str,
        part: int,
        *,
        capsule: bool = False,
        turn: float = 0.0,
        taper: float = 1.0,
        over: float = 0.0,
    ) -> None:
        """One loft from `start` (row 0 of the texture) to `end`.

        Args:
            start: Upper end of the axis.
            end: Lower end.
            across: Half width in the body's x, a number or one for each texture row.
            along: Half width in the body's y.
            texture: Name of the texture.
            part: Part it counts as.
            capsule: Round both ends, beyond the axis.
            turn: Extra yaw of this part (a turned head).
            taper: Half width at the end relative to the start.
            over: How much nearer to the viewer it counts, so that a skirt hides the leg inside it.
        """
        x0, y0, d0, k0 = self.project(start)
        x1, y1, d1, k1 = self.project(end)
        yaw = self.view.yaw + turn
        c2, s2 = math.cos(yaw) ** 2, math.sin(yaw) ** 2
        scale = k0 + (k1 - k0) * _ENDS
        if capsule:
            wide0 = math.sqrt(across**2 * c2 + along**2 * s2)
            r0, r1 = wide0 * k0, wide0 * taper * k1
            length = math.hypot(x1 - x0, y1 - y0)
            ux, uy = ((x1 - x0) / length, (y1 - y0) / length) if length > 0.5 else (0.0, 1.0)
            total = length + r0 + r1
            x0, y0 = x0 - ux * r0, y0 - uy * r0
            at = _V * total
            core = np.minimum(np.maximum((at - r0) / max(length, 1e-6), 0), 1)
            radius = r0 + (r1 - r0) * core
            off = np.where(at < r0, r0 - at, np.where(at > r0 + length, at - r0 - length, 0.0))
            wide = np.sqrt(np.maximum(radius**2 - off**2, 0.01))
            deep = wide * (math.sqrt(across**2 * s2 + along**2 * c2) / wide0)
            depth = d0 + (d1 - d0) * core
            rows = np.minimum(core * ROWS, ROWS - 1).astype(np.int32)
            length = total
        else:
            length = math.hypot(x1 - x0, y1 - y0)
            if length < 1.0:
                return
            ux, uy = (x1 - x0) / length, (y1 - y0) / length
            a, b = np.broadcast_to(across, ROWS), np.broadcast_to(along, ROWS)
            wide = np.maximum(np.sqrt(a**2 * c2 + b**2 * s2) * scale, 0.05)
            deep = np.sqrt(a**2 * s2 + b**2 * c2) * scale
            depth = d0 + (d1 - d0) * _ENDS
            rows = _ROW
        most = float(wide.max())
        height, width = self.shape
        left = max(int(min(x0, x0 + ux * length) - most * abs(uy) - 1), 0)
        right = min(int(max(x0, x0 + ux * length) + most * abs(uy) + 2), width)
        top = max(int(min(y0, y0 + uy * length) - most * abs(ux) - 1), 0)
        bottom = min(int(max(y0, y0 + uy * length) + most * abs(ux) + 2), height)
        if left >= right or top >= bottom:
            return
        dx, dy = self.xs[:, left:right] - np.float32(x0), self.ys[top:bottom] - np.float32(y0)
        step = ROWS / length
        t = dx * np.float32(ux * step) + dy * np.float32(uy * step)
        s = dx * np.float32(uy) - dy * np.float32(ux)
        row = t.astype(np.int32)
        np.maximum(row, 0, out=row)
        np.minimum(row, ROWS - 1, out=row)
        q = s * (1 / wide).astype(np.float32)[row]
        inside = np.flatnonzero((np.abs(q) < 1) & (t >= 0) & (t < ROWS))
        if not inside.size:
            return
        q, row = q.reshape(-1)[inside], row.reshape(-1)[inside]
        line, column = np.divmod(inside, right - left)
        at = (line + top) * width + (column + left)
        c = np.sqrt(1 - q * q)
        z = (depth + over * self.view.size).astype(np.float32)[row] + deep.astype(np.float32)[row] * c
        seen = np.flatnonzero(z > self.depth[at])
        if not seen.size:
            return
        at, q, row, c = at[seen], q[seen], row[seen], c[seen]
        self.depth[at] = z[seen]
        lx, ly, lz = self.view.light
        lit = c * np.float32(lz) + q * np.float32(lx * uy - ly * ux)
        self.shade[at] = self.view.ambient + np.float32(1 - self.view.ambient) * 1.35 * np.maximum(lit, 0)
        middle = COLUMNS // 2 - round(yaw / (2 * math.pi) * COLUMNS)
        columns = (_TURN[(q * (_Q // 2) + (_Q // 2)).astype(np.int32)] + (middle + 4 * COLUMNS)) % COLUMNS
        self.texel[at] = TEXTURE_INDEX[texture] * ROWS * COLUMNS + rows[row] * COLUMNS + columns
        self.part[at] = part


def _profile(*points: tuple[float, float]) -> NDArray[np.float64]:
    """A smooth half-width curve through (row 0..1, value) points."""
    at, value = zip(*points, strict=True)
    return np.interp(_V, at, value)


def draw_figure(seed: int, person: Person, pose: Pose, view: View, supersample: int = 2) -> Figure:
    """Renders a person; `view.size` is in pixels of the result, drawn `supersample` times larger and averaged."""
    n = supersample
    size = view.size * n
    rows, columns = int(size * 1.22 + 8) // n * n, int(size * 0.86 + 8) // n * n
    view = View(view.yaw, view.pitch, size, view.light, view.ambient, view.distance)
    r = Renderer(view, columns, rows)
    j = joints(person, pose)
    base = j["trunk"][2]  # what legs of another length add to every height of the trunk
    lean = math.sin(pose.lean)

    def trunk(x: float, y: float, z: float) -> Point:
        return (x, y + lean * (z - 0.52), z + base)

    fat, sh, hp = person.build, person.shoulders, person.hips
    bulk = {"coat": 1.14, "jacket": 1.1, "open jacket": 1.1, "hoodie": 1.1, "sweater": 1.05}.get(person.upper, 1.0)
    arm = 0.027 * bulk * (0.75 + 0.25 * fat)
    flat = person.upper == "dress"

    # legs
    loose = {"trousers": 1.14, "jeans": 1.06, "leggings": 0.94}.get(person.lower, 1.0)
    for k in "lr":
        if person.lower == "long skirt":
            start: Point = j[f"knee_{k}"]
        else:
            start = j[f"hip_{k}"]
            across, along = 0.047 * fat * loose * hp, 0.051 * fat * loose
            r.loft(start, j[f"knee_{k}"], across, along, "thigh", LEGS, capsule=True, taper=0.76)
        calf = 0.034 * fat * loose
        end = 0.9 if person.lower == "trousers" else 0.66
        r.loft(j[f"knee_{k}"], j[f"ankle_{k}"], calf, calf * 1.06, "shin", LEGS, capsule=True, taper=end)
        thick = 0.031 if person.shoes in ("trainers", "boots") else 0.027
        r.loft(j[f"heel_{k}"], j[f"toe_{k}"], thick, thick, "shoe", FEET, capsule=True, taper=0.8)
    hip_z, waist_z = j["hip_l"][2], 0.6
    hips = _profile((0, 0.078), (0.35, 0.092), (0.75, 0.09), (1, 0.05))
    if not flat:
        r.loft(trunk(0, 0, waist_z), (0, 0, hip_z - 0.05), hips * fat * hp, hips * 0.78 * fat, "hips", LEGS)
    spread = abs(math.sin(pose.phase)) * pose.swing
    if person.lower in ("skirt", "long skirt"):
        hem = 0.36 if person.lower == "skirt" else 0.13
        a = _profile((0, 0.076), (0.25, 0.096), (1, 0.112 if hem > 0.2 else 0.125)) * fat * hp
        b = _profile((0, 0.06), (0.25, 0.078), (0.6, 0.09 + 0.04 * spread), (1, 0.094 + 0.1 * spread)) * fat
        r.loft(trunk(0, 0, waist_z), trunk(0, 0.01, hem), a, b, "skirt", LEGS, over=0.03)

    # trunk: heights of the profile's points are fixed, the hem moves
    top, hem = 0.84, person.hem
    heights = np.array([0.84, 0.828, 0.81, 0.775, 0.72, 0.64, 0.58, 0.53, 0.48, 0.34, 0.2])
    flare = 1.28 if flat else (1.12 if person.upper == "coat" else 1.0)
    upper = [0.034, 0.07, 0.098 * sh, 0.104 * sh, 0.098 * sh]
    half = np.array([*upper, 0.08, 0.084 * hp, 0.094 * hp, 0.097 * hp, 0.099 * hp * flare, 0.11 * hp * flare])
    skirt = [0.078 + 0.02 * spread, 0.076 * flare + 0.08 * spread, 0.08 * flare + 0.1 * spread]
    deep = np.array([0.034, 0.043, 0.052, 0.06, 0.066, 0.058, 0.062, 0.07, *skirt])
    grow = np.array([1, 1, 1, 1, 1, *[0.5 + 0.5 * fat] * 6])  # a heavy person is wider at the waist than at the neck
    z = top - _V * (top - hem)
    order = slice(None, None, -1)
    a = np.interp(z, heights[order], (half * grow)[order]) * bulk * (0.6 + 0.4 * fat)
    b = np.interp(z, heights[order], (deep * grow)[order]) * bulk * (0.4 + 0.6 * fat)
    r.loft(
        trunk(0, 0, top), trunk(0, 0, hem), a, b, "torso", TORSO, over=0.03 if flat or person.upper == "coat" else 0.016
    )
    r.loft(trunk(0, 0.002, 0.875), trunk(0, -0.004, 0.82), 0.029, 0.03, "neck", HEAD, capsule=True)

    # arms
    for k in "lr":
        shoulder = j[f"shoulder_{k}"]
        r.loft(shoulder, j[f"elbow_{k}"], arm * 1.06, arm * 1.12, "sleeve", ARMS, capsule=True, taper=0.84, over=0.02)
        cuff = 1.0 if person.sleeves == "long" else 0.82
        thin = arm * 0.95 * cuff
        r.loft(j[f"elbow_{k}"], j[f"wrist_{k}"], thin, thin, "forearm", ARMS, capsule=True, taper=0.74, over=0.02)
        w, e = j[f"wrist_{k}"], j[f"elbow_{k}"]
        out = tuple(w[i] + (w[i] - e[i]) * 0.3 for i in range(3))
        r.loft(w, out, 0.016, 0.019, "hand", ARMS, capsule=True, taper=0.8, over=0.02)  # type: ignore[arg-type]

    # head
    hs = 1.08 * person.head
    nod = 0.018 + lean * 0.3
    turn = pose.head_turn

    def around(x: float, y: float, z: float) -> Point:
        """A point of the turned head."""
        c, s = math.cos(turn), math.sin(turn)
        px, py, pz = trunk(0, 0, z)
        return (px + x * c + y * s, py + nod - x * s + y * c, pz)

    shape = _ROUND**0.85 * _profile((0, 1), (0.55, 1.0), (0.8, 0.9), (1, 0.74))
    crown, chin = 1.0, 0.868
    r.loft(around(0, 0, crown), around(0, 0, chin), 0.046 * hs * shape, 0.057 * hs * shape, "head", HEAD, turn=turn)
    style = person.hair_style
    if style in ("short", "bob", "long", "ponytail", "bun"):
        cap = 0.05 * hs * _ROUND
        low = {"short": 0.915, "bun": 0.91, "ponytail": 0.9}.get(style, 0.88)
        r.loft(around(0, -0.016, 1.008), around(0, -0.02, low), cap, cap, "hair", HEAD, turn=turn)
    if style in ("bob", "long"):
        end = 0.855 if style == "bob" else 0.76
        fall = np.minimum(_profile((0, 0.6), (0.2, 1), (1, 0.92 if style == "bob" else 0.8)), 1.25 * _BOX)
        fall = hs * fall
        r.loft(around(0, -0.03, 0.985), around(0, -0.046, end), 0.056 * fall, 0.032 * fall, "hair", HEAD, turn=turn)
    elif style == "ponytail":
        r.loft(around(0, -0.07, 0.95), around(0, -0.085, 0.83), 0.017, 0.017, "hair", HEAD, capsule=True, taper=0.6)
    elif style == "bun":
        r.loft(around(0, -0.058, 0.99), around(0, -0.062, 0.98), 0.024, 0.024, "hair", HEAD, capsule=True)
    if person.hat != "none":
        dome = np.sqrt(np.clip(1 - (1 - _V) ** 2, 0, 1))
        low = 0.945 if person.hat == "cap" else 0.935
        high = 1.012 if person.hat == "cap" else 1.025
        dome = hs * dome
        r.loft(around(0, -0.004, high), around(0, -0.004, low), 0.053 * dome, 0.064 * dome, "hat", HEAD, turn=turn)
        if person.hat == "cap":
            peak = (around(0, 0.05, 0.95), around(0, 0.098, 0.942))
            r.loft(*peak, 0.034, 0.012, "hat", HEAD, capsule=True, turn=turn, taper=0.9)

    # what is carried
    side, name = person.bag_side, "l" if person.bag_side < 0 else "r"
    if person.bag == "backpack":
        r.loft(trunk(0, -0.1, 0.815), trunk(0, -0.108, 0.585), 0.078 * _BOX, 0.052 * _BOX, "bag", CARRIED, over=0.02)
    elif person.bag in ("crossbody bag", "shoulder bag"):
        z0 = 0.56 if person.bag == "crossbody bag" else 0.64
        x = side * (0.112 * max(sh, fat * hp * 0.95) * bulk + 0.02)
        r.loft(
            trunk(x, -0.02, z0), trunk(x * 1.03, -0.02, z0 - 0.11), 0.028 * _BOX, 0.07 * _BOX, "bag", CARRIED, over=0.02
        )
        if person.bag == "shoulder bag":
            strap = (trunk(side * 0.1 * sh, 0.01, 0.83), trunk(x, -0.02, z0))
            r.loft(*strap, 0.006, 0.012, "detail", CARRIED, capsule=True)
    elif person.bag in ("handbag", "shopping bag"):
        hand = j[f"wrist_{name}"]
        tall, wide = (0.1, 0.07) if person.bag == "handbag" else (0.16, 0.062)
        x, y, zz = hand[0] + side * 0.008, hand[1] + 0.015, hand[2] - 0.075
        r.loft((hand[0], hand[1], hand[2] - 0.03), (x, y, zz), 0.006, 0.02, "detail", CARRIED, capsule=True)
        r.loft((x, y, zz), (x, y, zz - tall), 0.026 * _BOX, wide * _BOX, "bag", CARRIED, over=0.02)

    return _resolve(r, textures(seed, person), n)


def _resolve(r: Renderer, atlas: NDArray[np.uint8], n: int) -> Figure:
    """Looks the colours up and averages n x n pixels; keeps only the rectangle that holds the figure."""
    height, width = r.shape
    part = r.part.reshape(height, width)
    ys, xs = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    top, bottom = ys[0] // n * n, -(-(ys[-1] + 1) // n) * n
    left, right = xs[0] // n * n, -(-(xs[-1] + 1) // n) * n
    window = (slice(top, bottom), slice(left, right))
    part = part[window]
    covered = part > 0
    shade = np.where(covered, r.shade.reshape(height, width)[window], 0)
    rgb = np.multiply(atlas[r.texel.reshape(height, width)[window]], shade[..., None], dtype=np.float32)
    np.minimum(rgb, 255, out=rgb)
    h, w = (bottom - top) // n, (right - left) // n
    total, alpha = np.zeros((h, w, 3), np.float32), np.zeros((h, w), np.float32)
    for y in range(n):
        for x in range(n):
            total += rgb[y::n, x::n]
            alpha += covered[y::n, x::n]
    rgb = total * np.float32(1 / n**2)
    alpha *= np.float32(1 / n**2)
    # each pixel belongs to the part of one fixed subpixel: never a mixture of labels
    small = np.ascontiguousarray(part[n // 2 :: n, n // 2 :: n])
    pixels = np.bincount(small.reshape(-1), minlength=len(PARTS) + 1)[1:]
    return Figure(rgb, alpha, small, ((r.origin[0] - left) / n, (r.origin[1] - top) / n), pixels)
