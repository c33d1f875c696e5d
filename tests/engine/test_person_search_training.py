# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Person search end to end on rendered scenes: proposals, search, training, resuming."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from reidfast.data import load_search
from reidfast.data.proposals import SlidingBoxes, create_proposals, recall, suppress
from reidfast.engine.person_search import PersonSearcher, SceneMaps, Sizing, collect_pairs
from reidfast.evaluation import box_iou, person_search
from reidfast.models import create_model, load_trained

SCENES = {"ids": 8, "cameras": 2, "train": 10, "gallery": 8, "people": 2, "height": 96, "width": 128, "difficulty": 0.1}
TINY = {"backbone": "osnet_x0_25", "grid": 6, "hidden": 8, "size": (4, 2), "embedding": 16, "clusters": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_search("synthetic_scenes", tmp_path_factory.mktemp("scenes") / "a", **SCENES)


@pytest.mark.parametrize("name", ["sliding", "objectness", "simulated", "random", "oracle"])
def test_proposals(data, name):
    provider = create_proposals(name)
    boxes, scores = provider(data.gallery, 1)
    assert len(boxes) == len(scores) and (np.diff(scores) <= 1e-12).all()
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [128, 96]).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    again = create_proposals(name)(data.gallery, 1)
    np.testing.assert_array_equal(boxes, again.boxes)


def test_objectness_finds_people(data):
    found, count = recall(create_proposals("objectness", count=60), data.gallery)
    chance, _ = recall(create_proposals("random", count=60), data.gallery)
    assert count <= 60 and found > 0.75 and found > chance + 0.2
    assert recall(create_proposals("oracle"), data.gallery)[0] == 1.0


def test_proposal_options(data):
    for name, options, words in (
        ("edges", {}, "one of sliding"),
        ("random", {"colour": 1}, "does not take"),
        ("sliding", {"heights": ()}, "heights"),
        ("simulated", {"miss": 2}, "miss"),
        ("objectness", {"count": 0}, "count"),
    ):
        with pytest.raises(ValueError, match=words):
            create_proposals(name, **options)
    with pytest.raises(ValueError, match="choose other proposals"):
        create_proposals("detector")(data.gallery, 0)
    assert (SlidingBoxes((0.5,), 0.5, 1.0, 0.0).boxes(40, 20) == [[0, 0, 5, 10]]).all(1).any()


def test_selective_search_says_what_is_missing(data):
    try:
        provider = create_proposals("selective_search", count=20)
    except ImportError as error:
        assert "opencv-contrib-python-headless" in str(error)
    else:
        assert 0 < len(provider(data.gallery, 0).boxes) <= 20


def test_suppress():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [0, 0, 10, 10]], float)
    assert suppress(boxes, 0.5).tolist() == [0, 2] and suppress(boxes, 0.99).tolist() == [0, 1, 2]
    assert suppress(boxes, 0.99, 2).tolist() == [0, 1] and len(suppress(boxes[:0], 0.5)) == 0


def test_sizing():
    assert Sizing()(768, 576) == (800, 600) and Sizing()(1920, 1080) == (1000, 562)
    assert Sizing(0, 0, 2.0)(128, 96) == (256, 192)


def test_pairs_of_a_search():
    everything = list(collect_pairs(range(3), 2, None, np.array([0, 2])))
    assert [(i, q.tolist()) for i, q in everything] == [(0, [1]), (1, [0, 1]), (2, [0])]
    listed = list(collect_pairs(range(3), 2, [np.array([1, 2]), np.array([1])]))
    assert [(i, q.tolist()) for i, q in listed] == [(1, [0, 1]), (2, [0])]


def make(name, **options):
    torch.manual_seed(0)
    return create_model(
        name,
        **{**{k: v for k, v in TINY.items() if name == "npsm" or k in ("backbone", "size", "embedding")}, **options},
    )


def test_maps_are_computed_once(data, monkeypatch):
    model = make("two_stage")
    maps = SceneMaps(model, data.gallery, Sizing(0, 0, 1.0))
    calls, shallow = [], model.shallow
    monkeypatch.setattr(model, "shallow", lambda x: calls.append(1) or shallow(x))
    with torch.no_grad():
        first, again = maps([0, 1, 0]).features, maps([0]).features
    assert len(calls) == 2 and torch.equal(first[0], again[0]) and torch.equal(first[0], first[2])
    with pytest.raises(ValueError, match="keep 'float32'"):
        SceneMaps(model, data.gallery, keep="int8")


@pytest.mark.parametrize("final_box", ["attention", "identity"])
def test_search_in_batches_equals_search_of_each(data, final_box):
    model = make("npsm", final_box=final_box).eval()
    provider = create_proposals("objectness", count=30)
    lists = data.gallery_lists("all")
    wide = PersonSearcher(model, data.gallery, provider, Sizing(0, 0, 1.0))
    found, shrinkage = wide.search(data.queries, lists)
    pairs = len(data.queries) * (len(data.gallery) - 1)
    assert len(found.images) == pairs and len(set(zip(found.queries, found.images, strict=True))) == pairs
    narrow = PersonSearcher(model, data.gallery, provider, Sizing(0, 0, 1.0), batch=3, maps=wide.maps)
    other, _ = narrow.search(data.queries, lists)
    order = np.lexsort((found.images, found.queries)), np.lexsort((other.images, other.queries))
    np.testing.assert_allclose(found.boxes[order[0]], other.boxes[order[1]])
    np.testing.assert_allclose(found.similarities[order[0]], other.similarities[order[1]], atol=1e-5)
    # the boxes are proposals of their image, or regions made of them
    for i in np.unique(found.images):
        mine = found.boxes[found.images == i]
        near = box_iou(mine[:, None], provider(data.gallery, int(i)).boxes).max(1)
        assert (near > 0.99).all()
    assert shrinkage.covered[0] == pytest.approx(1) and (np.diff(shrinkage.covered) <= 1e-9).all()
    assert (np.diff(shrinkage.area) <= 1e-9).all() and len(shrinkage.covered) == model.steps + 1
    got = person_search(data.queries.with_features(), found, data.gallery.truth)
    assert 0 <= got.mean_ap <= 1


def test_two_stage_one_box_is_the_nearest(data):
    model = make("two_stage").eval()
    searcher = PersonSearcher(model, data.gallery, create_proposals("oracle"), Sizing(0, 0, 1.0))
    features, found = searcher.two_stage(data.queries)
    _, single = searcher.two_stage(data.queries, one_box=True)
    assert len(found.images) == len(data.gallery.boxes)
    for k in range(0, len(single.images), 7):
        q, image = single.queries[k], single.images[k]
        likeness = (found.features[torch.from_numpy(found.images == image)] @ features[q]).numpy()
        assert likeness.max() == pytest.approx(single.similarities[k], abs=1e-6)
        assert (found.boxes[found.images == image][likeness.argmax()] == single.boxes[k]).all()
    with pytest.raises(TypeError, match="expected an NPSM"):
        searcher.search(data.queries)


def settings(out, scenes, *more):
    return [
        f"--out={out}",
        f"--data.root={scenes}",
        f"--data.options={json.dumps(SCENES)}",
        "--data.name=synthetic_scenes",
        "--data.short=0",
        "--data.scale=1.0",
        "--data.pairs=4",
        "--data.proposal_options={count: 30}",
        "--model.backbone=osnet_x0_25",
        "--model.options={}",
        "--accelerator=cpu",
        "--evaluate_every=2",
        *more,
    ]


HEAD = "--model.head_options={grid: 6, hidden: 8, size: [4, 2], embedding: 16, clusters: 3}"
FROZEN = "--model.head_options={grid: 6, hidden: 16, size: [4, 2], embedding: 16, train_shallow: false}"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "b"
    load_search("synthetic_scenes", folder, **SCENES)
    return folder


def run(method, *arguments):
    pytest.importorskip("lightning", reason="needs the extra [train]")
    pytest.importorskip("jsonargparse", reason="needs the extra [train]")
    from reidfast.engine.methods import find_method
    from reidfast.engine.training import train

    return train(find_method(method), find_method(method).parse(arguments))


def losses(out, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "logs"))
    events.Reload()
    return [e.value for e in events.Scalars(name)]


def test_training_learns_where_people_are(tmp_path, scenes):
    """After a short run the regions hold more of the people than before it."""
    out = tmp_path / "run"
    metrics = run(
        "npsm",
        *settings(out, scenes, FROZEN, "--data.keep=float32", "--optim.epochs=12", "--evaluate_every=12"),
        "--optim.optimizer=adam",
        "--optim.lr=0.01",
        "--optim.backbone_factor=0.0",
        "--optim.milestones=[12]",
        "--loss.weight=0.0",
        "--loss.identity=oim",
        "--loss.ramp=1.0",
    )
    region = losses(out, "loss/region") if _has_tensorboard() else None
    if region is not None:
        assert region[-1] < region[0]
    before, after = metrics["before"], metrics["history"][-1]
    assert after["filled"] > 1.3 * before["filled"]  # more of the last region is the person
    assert after["covered"] > before["covered"]
    assert (out / "weights.safetensors").exists()


def _has_tensorboard():
    try:
        import tensorboard.backend.event_processing  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("method,identity", [("npsm", "softmax"), ("npsm", "oim"), ("two_stage", "oim")])
def test_trains_every_part(tmp_path, scenes, method, identity):
    head = HEAD if method == "npsm" else "--model.head_options={size: [4, 2], embedding: 16}"
    arguments = settings(tmp_path / "run", scenes, head, "--optim.epochs=1", f"--loss.identity={identity}")
    metrics = run(method, *arguments, "--loss.boxes=all")
    assert set(metrics["before"]) == set(metrics["history"][0]) - {"epoch"}
    made = load_trained(tmp_path / "run")
    assert type(made.model).__name__ == ("NPSM" if method == "npsm" else "RegionEmbedder")
    assert (made.model.classifier is not None) == (identity == "softmax")
    assert made.card["sizing"] == {"short": 0, "long": 1000, "scale": 1.0}
    assert made.model(torch.randn(2, 3, 64, 32)).shape == (2, 16)
    from_checkpoint = load_trained(tmp_path / "run" / "last.ckpt").model.state_dict()
    assert all(torch.equal(v, from_checkpoint[k]) for k, v in made.model.state_dict().items())


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, scenes):
    pytest.importorskip("lightning", reason="needs the extra [train]")
    from reidfast.models import read_weights

    arguments = [*settings(tmp_path / "whole", scenes, HEAD), "--optim.epochs=2", "--evaluate_every=2"]
    run("npsm", *arguments)
    cut = [a.replace("whole", "cut") if a.startswith("--out") else a for a in arguments]
    process = subprocess.Popen(
        [sys.executable, "-m", "reidfast", "train", "npsm", *cut], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 240
    while not (tmp_path / "cut" / "last.ckpt").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "cut" / "last.ckpt").exists(), process.stderr.read().decode()[-500:]
    metrics = run("npsm", *cut, "--resume=true")
    a, b = (read_weights(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert metrics["history"][-1]["epoch"] == 2


def test_settings_that_do_not_fit(tmp_path, scenes):
    with pytest.raises(ValueError, match="train_shallow to false"):
        run("npsm", *settings(tmp_path / "run", scenes, HEAD, "--data.keep=float32"))
