# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reidfast.data import World, contact_sheet, decode, load_dataset, write_synthetic
from reidfast.data.registry import cache_folder
from reidfast.data.synthetic import PARTS, Pose, SyntheticSet, View, draw_figure
from reidfast.data.synthetic.people import COLOURS
from reidfast.data.synthetic.streams import Stream

SMALL = {"ids": 4, "cameras": 2, "images": 2, "height": 64, "width": 32}

# random streams


def test_stream_is_addressed() -> None:
    def numbers(*address: int, seed: int = 1, domain: str = "a") -> list[float]:
        s = Stream(seed, domain, *address)
        return [s.random() for _ in range(70)]

    first = numbers(1, 2, 3)
    assert first == numbers(1, 2, 3) and all(0 <= x < 1 for x in first)
    others = [
        numbers(1, 2, 4),
        numbers(1, 3, 3),
        numbers(2, 2, 3),
        numbers(1, 2, 3, seed=2),
        numbers(1, 2, 3, domain="b"),
    ]
    assert all(not set(first) & set(o) for o in others)
    numbers(-1, 2**63)  # any integer is an address


def test_stream_is_pinned() -> None:
    """The numbers themselves, so that no change of numpy or of this class goes unseen."""
    s = Stream(7, "pin", 1, 2, 3)
    assert [round(s.random(), 12) for _ in range(3)] == [0.208383875473, 0.894227536717, 0.68670424698]
    assert [s.integer(100) for _ in range(4)] == [4, 99, 53, 93]


def test_stream_distributions() -> None:
    s = Stream(0, "test")
    draws = np.array([s.normal(2, 3) for _ in range(4000)])
    assert abs(draws.mean() - 2) < 0.2 and abs(draws.std() - 3) < 0.15
    noise = s.noise(101, 33)
    assert noise.shape == (101, 33) and abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.03
    picks = [s.choice("abc", (1, 0, 3)) for _ in range(2000)]
    assert "b" not in picks and abs(picks.count("c") / 2000 - 0.75) < 0.05
    assert {s.integer(3) for _ in range(100)} == {0, 1, 2}


# pictures


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=3, difficulty=0.5, height=64, width=32)


def test_render_shapes(world: World) -> None:
    shot = world.render(5, 2, 1)
    assert shot.image.shape == (64, 32, 3) and shot.image.dtype == np.uint8
    assert shot.parts.shape == shot.mask.shape == (64, 32) and shot.parts.max() <= len(PARTS)
    assert shot.visibility.shape == (len(PARTS),)
    assert -math.pi <= shot.yaw <= math.pi
    again = decode_bytes(shot.jpeg)
    assert np.array_equal(again, shot.image)


def decode_bytes(jpeg: bytes) -> np.ndarray:
    import io

    from PIL import Image

    return np.array(Image.open(io.BytesIO(jpeg)))


@pytest.mark.parametrize("height,width", [(128, 64), (256, 128), (96, 96), (33, 17)])
@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_any_size(height: int, width: int, difficulty: float) -> None:
    for index in range(2):
        shot = World(0, difficulty, height, width).render(1, 1, index)
        assert shot.image.shape == (height, width, 3) and shot.parts.shape == (height, width)


def test_order_does_not_matter(world: World) -> None:
    wanted = [(pid, camid, index) for pid in (1, 2, 9) for camid in (1, 4) for index in (0, 1)]
    one = {w: world.render(*w) for w in wanted}
    two = {w: World(seed=3, difficulty=0.5, height=64, width=32).render(*w) for w in reversed(wanted)}
    assert all(one[w].jpeg == two[w].jpeg and np.array_equal(one[w].parts, two[w].parts) for w in wanted)
    assert len({shot.jpeg for shot in one.values()}) == len(wanted)


def test_another_process_renders_the_same_bytes(world: World) -> None:
    code = (
        "import hashlib; from reidfast.data import World;"
        "print(hashlib.sha256(World(3, 0.5, 64, 32).render(9, 4, 1).jpeg).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert out.stdout.strip() == hashlib.sha256(world.render(9, 4, 1).jpeg).hexdigest()


def test_seed_and_difficulty_change_the_picture(world: World) -> None:
    shots = {w.render(1, 1, 0).jpeg for w in (world, World(4, 0.5, 64, 32), World(3, 0.6, 64, 32))}
    assert len(shots) == 3


@pytest.mark.parametrize(
    "arguments,words",
    [
        ({"difficulty": 1.5}, r"difficulty in \[0, 1\], got 1.5"),
        ({"height": 8}, "at least 32 x 16"),
        ({"supersample": 0}, "1..8"),
    ],
)
def test_world_rejects(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        World(**arguments)


def test_easy_pictures_show_the_whole_person() -> None:
    easy = World(0, 0.0)
    for pid in range(1, 9):
        shot = easy.render(pid, 1, 0)
        seen = shot.visibility[[PARTS.index(p) for p in ("head", "torso", "legs", "feet")]]
        assert shot.occluder == "none" and (seen > 0.9).all()
        assert 0.12 < shot.mask.mean() < 0.7
        rows = np.flatnonzero(shot.mask.any(1))
        assert rows[0] < 0.15 * 128 and rows[-1] > 0.85 * 128
        middle = [
            np.mean(np.flatnonzero((shot.parts == 1 + PARTS.index(p)).any(1)))
            for p in ("head", "torso", "legs", "feet")
        ]
        assert middle == sorted(middle)  # head over torso over legs over feet


def test_hard_pictures_hide_parts() -> None:
    hard = [World(0, 1.0, 64, 32).render(pid, camid, 0) for pid in range(1, 21) for camid in (1, 2)]
    kinds = {shot.occluder for shot in hard}
    assert {"person", "pole", "block"} <= kinds
    hidden = [shot for shot in hard if shot.occluder == "block"]
    feet = PARTS.index("feet")
    assert np.mean([shot.visibility[feet] for shot in hidden]) < np.nanmean(
        [s.visibility[feet] for s in hard if s.occluder == "none"]
    )
    for shot in hard:
        there = ~np.isnan(shot.visibility)
        assert ((shot.visibility[there] >= 0) & (shot.visibility[there] <= 1)).all()


def test_part_colours_are_the_persons() -> None:
    """In an easy picture the torso's pixels have about the colour the attributes name."""
    easy = World(1, 0.0)
    plain = [
        p for p in map(easy.person, range(1, 300)) if p.pattern == "plain" and p.upper == "sweater" and p.bag == "none"
    ]
    assert len(plain) >= 3
    for person in plain[:5]:
        shot = easy.render(person.pid, 1, 0)
        found = np.median(shot.image[shot.parts == 1 + PARTS.index("torso")], 0)
        named = np.array(COLOURS[person.upper_colour])
        nearest = min(
            COLOURS,
            key=lambda c: float(
                np.abs(np.array(COLOURS[c]) * found.mean() / max(np.mean(COLOURS[c]), 1) - found).sum()
            ),
        )
        assert np.abs(found - named).mean() < 60 or nearest == person.upper_colour


def test_front_and_back_differ() -> None:
    """A backpack is seen from behind; a face is not."""
    world = World(0, 0.0)
    person = next(p for p in map(world.person, range(1, 200)) if p.bag == "backpack" and p.hair_style == "long")
    front = draw_figure(0, person, Pose(), View(yaw=0.0))
    back = draw_figure(0, person, Pose(), View(yaw=math.pi))
    carried = PARTS.index("carried")
    assert back.pixels[carried] > 4 * max(1, front.pixels[carried])
    head_front, head_back = (f.rgb[f.part == 1].mean() for f in (front, back))
    assert abs(head_front - head_back) > 5


def test_walking_moves_the_legs() -> None:
    world = World(0, 0.0)
    person = next(p for p in map(world.person, range(1, 50)) if p.lower == "trousers")

    def width(swing: float) -> int:
        figure = draw_figure(0, person, Pose(phase=math.pi / 2, swing=swing), View(yaw=math.pi / 2))
        feet = np.flatnonzero((figure.part == 1 + PARTS.index("feet")).any(0))
        return int(feet[-1] - feet[0])

    assert width(1.0) > 1.6 * width(0.0)


def test_identity_is_more_than_a_colour_histogram() -> None:
    """At difficulty 0 colours find the person; at 0.5 they do not, and yet the clothes are the same."""

    def rank1(difficulty: float) -> float:
        world = World(2, difficulty, 64, 32)
        histograms, pids = [], []
        for pid in range(1, 31):
            for camid in (1, 2):
                image = world.render(pid, camid, 0).image[:, 6:-6] // 43
                bands = [
                    np.bincount((b.astype(np.int64) @ [36, 6, 1]).reshape(-1), minlength=216)
                    for b in np.array_split(image, 4)
                ]
                h = np.sqrt(np.concatenate(bands) / image[..., 0].size)
                histograms.append(h)
                pids.append(pid)
        f = np.array(histograms)
        query, gallery = f[::2], f[1::2]
        return float(np.mean((query @ gallery.T).argmax(1) == np.arange(30)))

    easy, hard = rank1(0.0), rank1(0.5)
    assert easy >= 0.4 and hard <= 0.5 * easy


def test_descriptions_are_varied(world: World) -> None:
    assert len({world.person(pid).describe() for pid in range(200)}) > 195
    assert "hair" in world.person(1).describe()


# sets on disk


def test_write_and_read(tmp_path: Path) -> None:
    data = write_synthetic(tmp_path / "s", **SMALL, distractors=3)
    assert [len(t) for t in data.splits.values()] == [8, 4, 4 + 3]
    assert set(data.train.pids) == {1, 2} and set(data.query.pids) == {3, 4}
    assert sorted(data.gallery.pids.tolist()) == [0, 0, 0, 3, 3, 4, 4]
    assert data.summary()["gallery"]["distractors"] == 3
    spec = data.info["synthetic"]
    for table in data.splits.values():
        for i in range(len(table)):
            truth = spec.photograph(int(table.pids[i]), int(table.camids[i]), int(table.extra["frame"][i]))
            assert truth.jpeg == table.absolute(i).read_bytes()
            assert np.array_equal(np.asarray(decode(table.absolute(i))), truth.image)


def test_load_makes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_dataset("synthetic", tmp_path / "s", **SMALL)
    stamp = first.train.absolute(0).stat().st_mtime_ns
    monkeypatch.setattr("reidfast.data.synthetic.sets._render_files", lambda *a: pytest.fail("rendered again"))
    again = load_dataset("synthetic", tmp_path / "s")  # a finished folder knows its parameters
    assert again.train.paths == first.train.paths and again.info["synthetic"] == first.info["synthetic"]
    assert again.train.absolute(0).stat().st_mtime_ns == stamp


def test_default_folder_is_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REIDFAST_CACHE", str(tmp_path))
    data = load_dataset("synthetic", **SMALL)
    assert tmp_path in data.train.root.parents and cache_folder() == tmp_path
    assert load_dataset("synthetic", **SMALL).train.root == data.train.root
    assert load_dataset("synthetic", **{**SMALL, "seed": 1}).train.root != data.train.root


def test_workers_and_progress(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    two = write_synthetic(
        tmp_path / "two", workers=2, progress=lambda done, total: calls.append((done, total)), **SMALL
    )
    one = write_synthetic(tmp_path / "one", **SMALL)
    for a, b in zip(two.splits.values(), one.splits.values(), strict=True):
        assert a.paths == b.paths
        assert all(a.absolute(i).read_bytes() == b.absolute(i).read_bytes() for i in range(len(a)))
    assert calls[0] == (0, 16) and calls[-1] == (16, 16)


def test_interrupted_write_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reidfast.data.synthetic import sets

    real, count = sets._write_atomically, 0

    def dies(path: Path, content: bytes) -> None:
        nonlocal count
        count += path.suffix == ".jpg"
        if count == 6:
            path.with_name(f".{path.name}.1.tmp").write_bytes(content[:100])  # what kill -9 leaves
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(sets, "_write_atomically", dies)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path, **SMALL)
    monkeypatch.undo()
    written = sorted(tmp_path.rglob("*_00.jpg"))
    assert len(written) == 5 and not (tmp_path / "synthetic.json").exists()
    stamps = [p.stat().st_mtime_ns for p in written]
    with pytest.raises(FileExistsError, match="other parameters"):
        write_synthetic(tmp_path, **{**SMALL, "seed": 5})
    data = write_synthetic(tmp_path, **SMALL)
    assert [p.stat().st_mtime_ns for p in written] == stamps  # not rendered again
    assert sum(map(len, data.splits.values())) == 16
    left = [p.name for p in tmp_path.rglob("*") if "tmp" in p.name or "started" in p.name]
    assert left == [] and json.loads((tmp_path / "synthetic.json").read_text())["ids"] == 4


def test_killed_write_is_resumed(tmp_path: Path) -> None:
    """A real kill -9 in the middle."""
    code = (
        "import os, signal, sys; from reidfast.data import write_synthetic\n"
        "die = lambda done, total: done >= 8 and os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_synthetic({str(tmp_path / 's')!r}, progress=die, **{SMALL!r})"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "s/synthetic.json").exists() and len(list((tmp_path / "s").rglob("*.jpg"))) == 8
    data = write_synthetic(tmp_path / "s", **SMALL)
    whole = write_synthetic(tmp_path / "t", **SMALL)
    for a, b in zip(data.splits.values(), whole.splits.values(), strict=True):
        assert all(a.absolute(i).read_bytes() == b.absolute(i).read_bytes() for i in range(len(b)))


def test_lost_file_is_made_again(tmp_path: Path) -> None:
    data = write_synthetic(tmp_path, **SMALL)
    gone = data.train.absolute(3)
    content = gone.read_bytes()
    gone.unlink()
    write_synthetic(tmp_path, **SMALL)
    assert gone.read_bytes() == content


def test_overwrite_replaces_only_its_own(tmp_path: Path) -> None:
    write_synthetic(tmp_path, **SMALL)
    (tmp_path / "bounding_box_train/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="seed=0, not 1"):
        write_synthetic(tmp_path, **{**SMALL, "seed": 1})
    data = write_synthetic(tmp_path, overwrite=True, **{**SMALL, "ids": 2, "seed": 1})
    assert sum(map(len, data.splits.values())) == 8
    assert (tmp_path / "bounding_box_train/notes.txt").read_text() == "mine"


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(FileExistsError, match="not empty and not made here"):
        write_synthetic(tmp_path, overwrite=True, **SMALL)
    assert os.listdir(tmp_path) == ["holiday.jpg"]


@pytest.mark.parametrize(
    "change,words",
    [
        ({"ids": 0}, "ids of at least 1, got 0"),
        ({"images": 1}, "images >= 2"),
        ({"test": 2.0}, r"test in \[0, 1\]"),
        ({"difficulty": -1.0}, "difficulty in"),
        ({"people": 3}, "parameters among ids, .*got people"),
    ],
)
def test_write_rejects(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_synthetic(tmp_path / "s", **{**SMALL, **change})
    assert not (tmp_path / "s").exists()


def test_contact_sheet(world: World) -> None:
    sheet = contact_sheet(world, pids=[1, 2, 3], camids=[1, 2], images=2, gap=4)
    assert sheet.size == (4 + 2 * (64 + 4), 4 + 3 * (64 + 4))
    assert np.array_equal(np.asarray(sheet)[4:68, 4:36], world.render(1, 1, 0).image)
    with pytest.raises(ValueError, match="contact_sheet"):
        contact_sheet(world, pids=[])


def test_default_set_is_big_enough() -> None:
    spec = SyntheticSet()
    assert spec.ids >= 200 and spec.cameras == 6 and len(spec.files()) == 4800
