# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What a user can get wrong: one line on stderr that says what to do, exit status 2, nothing on stdout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from reidfast.engine import FeatureFile, FeatureTable, write_features
from reidfast.models import create_model, save_weights


def make(tmp_path):
    """Files that are wrong in one way each."""
    rng = np.random.default_rng(0)

    def table(n, pids, size=4):
        return FeatureTable(rng.normal(size=(n, size)).astype("f"), np.array(pids), np.zeros(n, int), ("x.jpg",) * n)

    def write(name, **splits):
        write_features(tmp_path / name, FeatureFile(splits))

    write("good.npz", query=table(2, [1, 2]), gallery=table(3, [1, 2, 3]))
    write("more.npz", query=table(3, [1, 2, 3]), gallery=table(3, [1, 2, 3]))
    write("disjoint.npz", query=table(2, [1, 2]), gallery=table(3, [7, 8, 9]))
    write("gallery_only.npz", gallery=table(3, [1, 2, 3]))
    write("empty_gallery.npz", query=table(2, [1, 2]), gallery=table(0, np.empty(0, int)))
    bad = table(3, [1, 2, 3])
    bad.features[1, 2] = np.nan
    write("nan.npz", query=table(2, [1, 2]), gallery=bad)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:200])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "features.csv").write_text("1,2,3\n")
    np.savez(tmp_path / "sizes.npz", features=np.ones((3, 2), "f"), pids=[1, 2], camids=[0, 0, 0])
    np.savez(tmp_path / "weights.npz", **{"conv1.conv.weight": np.ones((2, 2), "f")})
    (tmp_path / "weights.pt").write_text("not weights")
    save_weights(create_model("osnet_x0_25"), tmp_path / "osnet.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "osnet.pt").read_bytes()[:5000])
    (tmp_path / "empty").mkdir()
    (tmp_path / "split.json").write_text("{")
    for split in ("query", "gallery"):
        folder = tmp_path / "people" / split / "0001"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 16)).save(folder / "1_0001.png")
        Image.new("RGB", (8, 16)).save(folder / "2_0001.png")
    broken = tmp_path / "broken" / "query" / "0001"
    broken.mkdir(parents=True)
    (broken / "1_0001.jpg").write_bytes(b"no picture")
    return tmp_path


OSNET = "evaluate --data folder --root people --model osnet_x0_25 --weights "
STRIPES = "--model color_stripes --size 16x8"
CAMERA = "all of them seen by the query's own camera"
ERRORS = [
    ("", "the following arguments are required: COMMAND"),
    ("teach", "invalid choice: 'teach'"),
    ("train", "the following arguments are required: METHOD"),
    ("evaluate --nonsense", "reidfast: error: unrecognized arguments: --nonsense"),
    ("evaluate", "expected a feature file, or --data with --model, got neither"),
    ("evaluate good.npz --data folder", "got both"),
    ("evaluate --data folder", "got neither in full"),
    ("evaluate no.npz", "no.npz does not exist"),
    ("evaluate empty", "empty is a folder"),
    ("evaluate cut.npz", "cut.npz is not a feature file, or is damaged or cut short"),
    ("evaluate text.npz", "text.npz is not a feature file"),
    ("evaluate features.csv", "ending in .npz or .safetensors, got features.csv"),
    ("evaluate sizes.npz", "pids of shape (3,) to match, got (2,)"),
    ("evaluate weights.npz", "expected the columns features, pids, camids"),
    ("evaluate gallery_only.npz", "'query' split, this one has only gallery"),
    ("evaluate empty_gallery.npz", "gallery"),
    ("evaluate nan.npz --no-camera-rule", "NaN"),
    ("evaluate disjoint.npz --no-camera-rule", "none of the 2 queries has a match"),
    ("evaluate good.npz", CAMERA),
    ("evaluate good.npz --metric cosinus", "cosine, euclidean, sqeuclidean, dot, got 'cosinus'"),
    ("evaluate good.npz --protocol market", "--protocol: expected one of market1501"),
    ("evaluate good.npz --ap area", "--ap: expected one of step, trapezoid, sklearn, got 'area'"),
    ("evaluate good.npz --rerank --metric dot", "it has its own metric"),
    ("evaluate good.npz --compare no.npz", "no.npz does not exist"),
    ("evaluate good.npz --no-camera-rule --compare more.npz", "expected the same queries in more.npz"),
    ("evaluate good.npz --max-rank 0", "whole number of at least 1, got '0'"),
    ("evaluate good.npz --plot out.txt", "--plot: expected a name ending in .png"),
    ("evaluate good.npz --plot no/out.png", "the folder no does not exist"),
    ("evaluate --data folder --root empty " + STRIPES, "found no <person>/<camera>_*.jpg in empty"),
    ("evaluate --data folder --root nowhere " + STRIPES, "nowhere"),
    ("evaluate --data market1501 --root empty " + STRIPES, "empty"),
    ("evaluate --data marketplace " + STRIPES, "got 'marketplace'"),
    ("evaluate --data split.json " + STRIPES, "expected a JSON split in split.json"),
    ("evaluate --data folder --root people --data-option shots=2 " + STRIPES, "does not take these options"),
    ("evaluate --data folder --root people --data-option shots " + STRIPES, "expected KEY=VALUE, got 'shots'"),
    ("evaluate --data folder --root people --model osnet", "expected the name of a model, got 'osnet'; did you mean"),
    ("evaluate --data folder --root people --model color_stripes --model-option bins=3", "does not take these options"),
    ("evaluate --data folder --root people --model color_stripes --size 256", "expected HEIGHTxWIDTH such as 256x128"),
    ("evaluate --data folder --root people --filter area " + STRIPES, "expected filter in"),
    ("evaluate --data folder --root people --dtype int8 " + STRIPES, "expected dtype in float16, float32"),
    ("evaluate --data folder --root people --device tpu " + STRIPES, "expected auto, cpu, cuda"),
    (OSNET + "no.pt", "no.pt does not exist"),
    (OSNET + "weights.pt", "weights.pt is not a"),
    (OSNET + "cut.pt", "damaged or cut short"),
    (OSNET + "weights.npz", "(2, 2) for the model's (16, 3, 7, 7)"),
    ("evaluate --data folder --root people --model mobilenet_v2 --weights osnet.pt", "does not fit MobileNetV2"),
    ("extract out.npz --data folder --root broken " + STRIPES, "1_0001.jpg"),
    ("extract out.npz --data folder --root people --splits train " + STRIPES, "has no train images"),
    ("extract out.txt --data folder --root people " + STRIPES, "ending in .npz or .safetensors, got out.txt"),
    ("extract no/out.npz --data folder --root people " + STRIPES, "the folder no of the output does not exist"),
    ("extract good.npz --data folder --root people " + STRIPES, "made with other"),
    ("extract cut.npz --data folder --root people " + STRIPES, "is no whole feature file"),
    ("extract out.npz --root people " + STRIPES, "the following arguments are required: --data"),
    ("search good.npz --query 5", "expected rows from 0 to 1, got 5"),
    ("search good.npz --image people/query/0001/1_0001.png", "expected --model beside it, got none"),
    ("search good.npz --image no.png " + STRIPES, "no such image"),
    ("search good.npz --image people/query/0001/1_0001.png " + STRIPES, "4 numbers as in the gallery, got 216"),
    ("search good.npz --k x", "expected a whole number of at least 1, got 'x'"),
    ("report good.npz", "does not say where its images are; give --root"),
    ("report good.npz --root empty", "no image empty/x.jpg; give their folder as --root"),
    ("report good.npz --order middle", "--order: expected one of worst, best, first, random"),
    ("report good.npz --out report.pdf", "ending in .html"),
    ("data", "the following arguments are required: ACTION"),
    ("data show nowhere", "got 'nowhere'"),
    ("data show folder --root empty", "found no"),
    ("data synthetic empty --ids 0", "at least 1, got '0'"),
    ("data synthetic people --ids 2", "people is not empty"),
    ("data synthetic new --option wings=2", "got wings"),
    ("demo --cameras 1 --out d", "at least 2 cameras"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("wrong"))


@pytest.mark.parametrize("line,words", ERRORS, ids=[line or "nothing" for line, _ in ERRORS])
def test_one_clear_line_and_status_2(reidfast, folder, monkeypatch, line, words):
    monkeypatch.chdir(folder)
    result = reidfast(*line.split())
    assert result.status == 2 and result.out == ""
    lines = [row for row in result.err.splitlines() if not row.startswith("note: ")]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("reidfast") and "error: " in lines[0] and words in lines[0]
    assert "Traceback" not in result.err


def test_cuda_without_a_gpu(reidfast, folder, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(folder)
    result = reidfast(*f"extract c.npz --data folder --root people --device cuda {STRIPES}".split())
    assert result.status == 2 and "finds no CUDA device; use cpu" in result.err


def test_debug_shows_the_traceback(reidfast, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for arguments in (("--debug", "evaluate", "cut.npz"), ("evaluate", "cut.npz", "--debug")):
        with pytest.raises(ValueError, match="damaged or cut short"):
            reidfast(*arguments)


def test_missing_optional_package_names_the_extra(reidfast, features, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = reidfast("evaluate", features, "--plot", tmp_path / "a.png")
    assert result.status == 2 and 'pip install "reidfast[report]"' in result.err
