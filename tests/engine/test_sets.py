# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Whole tracklets: embedded in blocks as if at once, ranked by the video protocols, averaged over splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from reidfast import ops
from reidfast.data import Records, ReidData, Tracklets
from reidfast.engine import sets
from reidfast.engine.sets import embed_sets, evaluate_sets, evaluate_splits, rank_sets, take_frames

LENGTHS = [1, 7, 3, 12, 2, 5]


def picture(records: Records, row: int) -> Image.Image:
    rng = np.random.default_rng(row)
    return Image.fromarray(rng.integers(0, 255, (8, 4, 3), dtype=np.uint8))


@pytest.fixture
def tracklets() -> Tracklets:
    n = sum(LENGTHS)
    tracklet = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    frame = np.arange(n)
    records = Records(
        ".", tuple(f"{i}.png" for i in range(n)), tracklet // 2, tracklet % 2, {"tracklet": tracklet, "frame": frame}
    )
    return Tracklets.of(records)


class Weighted(nn.Module):
    """As QAN: what is pooled needs all frames of a tracklet."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def encode_frames(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(len(images))
        return images.flatten(1), images.mean((1, 2, 3))

    def pool_frames(self, features: Tensor, scores: Tensor, offsets: Tensor) -> Tensor:
        return ops.set_pool(features, scores, offsets, weighting="sigmoid")


class Last(nn.Module):
    """As a recurrence: the order counts."""

    def embed_track(self, chunks):  # type: ignore[no-untyped-def]
        state = torch.zeros(96)
        for chunk in chunks:
            assert len(chunk) <= 4
            for image in chunk:
                state = 0.5 * state + image.flatten()
        return state


def everything(tracklets: Tracklets) -> list[Tensor]:
    from reidfast.data import EvalTransform

    transform = EvalTransform(8, 4)
    return [torch.stack([transform(picture(tracklets.frames, int(r))) for r in t.rows]) for t in tracklets]


@pytest.mark.parametrize("batch", [1, 4, 5, 64])
def test_blocks_do_not_show(tracklets: Tracklets, batch: int) -> None:
    model = Weighted()
    model.train()
    found = embed_sets(model, tracklets, size=(8, 4), batch=batch, decode=picture)
    wanted = []
    for images in everything(tracklets):
        z = images.mean((1, 2, 3)).double()
        w = torch.sigmoid(z) / torch.sigmoid(z).sum()
        wanted.append((w[:, None] * images.flatten(1).double()).sum(0))
    torch.testing.assert_close(found.double(), torch.stack(wanted), atol=1e-5, rtol=1e-5)
    assert max(model.seen) <= batch and sum(model.seen) == 30 and len(model.seen) == -(-30 // batch)
    assert model.training


def test_tracks_in_time_order(tracklets: Tracklets) -> None:
    found = embed_sets(Last(), tracklets, size=(8, 4), batch=4, decode=picture)
    for row, images in zip(found, everything(tracklets), strict=True):
        state = torch.zeros(96)
        for image in images:
            state = 0.5 * state + image.flatten()
        torch.testing.assert_close(row, state)


def test_a_model_of_images_is_averaged(tracklets: Tracklets) -> None:
    found = embed_sets(nn.Flatten(), tracklets, size=(8, 4), batch=4, decode=picture)
    torch.testing.assert_close(
        found, torch.stack([x.flatten(1).mean(0) for x in everything(tracklets)]), atol=1e-6, rtol=1e-5
    )


def test_errors(tracklets: Tracklets) -> None:
    with pytest.raises(ValueError, match="at least one frame each"):
        embed_sets(nn.Flatten(), tracklets.select([]), decode=picture)
    with pytest.raises(ValueError, match="batch of at least 1"):
        embed_sets(nn.Flatten(), tracklets, batch=0, decode=picture)

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) * float("nan")

    with pytest.raises(ValueError, match="tracklet 0 is NaN"):
        embed_sets(Broken(), tracklets, size=(8, 4), decode=picture)
    with pytest.raises(ValueError, match="choose among"):
        take_frames(tracklets, "some")


def test_take_frames(tracklets: Tracklets) -> None:
    some = take_frames(tracklets, "chunks", 3)
    assert some.lengths.tolist() == [3] * 6 and (some[3].rows - tracklets[3].rows[0]).tolist() == [0, 4, 8]
    assert take_frames(tracklets, "all").rows.tolist() == tracklets.rows.tolist()


def data_of(pids: list[int], camids: list[int], query: list[int]) -> ReidData:
    """One frame a tracklet."""
    n = len(pids)
    paths = tuple(f"{i}.png" for i in range(n))
    whole = Records(".", paths, pids, camids, {"tracklet": np.arange(n), "frame": np.zeros(n, np.int64)})
    return ReidData("made", Records.empty(), whole.select(query), whole, distractor=0, info={"query_in_gallery": True})


def test_mars_protocol_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """MARS: the query itself and other tracks of its camera are junk, so is pid -1; 0 is a distractor."""
    data = data_of([1, 1, 1, 0, -1, 2, 2], [1, 1, 2, 3, 2, 1, 2], [0, 5])
    place = torch.tensor([0.0, 0.01, 0.30, 0.10, 0.02, 1.0, 1.05])
    table = torch.stack([place.cos(), place.sin()], 1)
    asked: list[int] = []

    def embed(model: nn.Module, tracklets: Tracklets, **options: object) -> Tensor:
        asked.append(len(tracklets))
        return table[torch.from_numpy(tracklets.extra["tracklet"])]

    monkeypatch.setattr(sets, "embed_sets", embed)
    ranking = evaluate_sets(nn.Identity(), data, protocol="mars")
    assert ranking is not None and asked == [7]  # the queries are embedded with the gallery
    # query 0: the distractor stands before its match; trapezoid: (P(1) + P(2)) / 2 = (0 + 1/2) / 2
    np.testing.assert_allclose(ranking.ap, [0.25, 1.0])
    np.testing.assert_allclose(ranking.cmc[:2], [0.5, 1.0])
    official, other = ranking.mean_ap, evaluate_sets(nn.Identity(), data, protocol="mars_torchreid")
    assert other is not None and other.mean_ap == 0.75 != official


def test_mars_size_counts() -> None:
    """As many correct pairs as the labels say, with the queries in the gallery."""
    rng = np.random.default_rng(0)
    pids, camids = rng.integers(-1, 30, 400), rng.integers(1, 7, 400)
    query = np.flatnonzero((pids > 0) & (rng.random(400) < 0.3))
    data = data_of(pids.tolist(), camids.tolist(), query.tolist())
    x = torch.from_numpy(rng.standard_normal((400, 16)).astype(np.float32))
    q, g = Tracklets.of(data.query), Tracklets.of(data.gallery)
    ranking = rank_sets(x[q.extra["tracklet"]], x, q, g, protocol="mars")
    right = (pids[query, None] == pids) & (camids[query, None] != camids)
    assert (ranking.valid == right.any(1)).all()
    for k in np.flatnonzero(ranking.valid)[:20]:  # AP from the definition
        i = query[k]
        keep = (pids != -1) & ~((pids == pids[i]) & (camids == camids[i]))
        sim = torch.nn.functional.cosine_similarity(x[i][None], x).numpy()
        y = right[k][keep][np.argsort(-sim[keep], kind="stable")]
        precision = np.r_[1.0, np.cumsum(y) / np.arange(1, len(y) + 1)]
        hits = np.flatnonzero(y)
        np.testing.assert_allclose(ranking.ap[k], np.mean((precision[hits] + precision[hits + 1]) / 2), atol=1e-6)


def test_splits_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {0: [0.0, 0.1, 0.5, 0.6], 1: [0.0, 0.5, 0.1, 0.6]}
    monkeypatch.setattr(sets, "load_dataset", lambda name, root, split: split)

    def score(split):  # type: ignore[no-untyped-def]
        place = torch.tensor(made[split])
        x = torch.stack([place.cos(), place.sin()], 1)
        return sets.rank(x[[0, 3]], x[[1, 2]], [1, 2], [1, 2], [1, 1], [2, 2])

    found = evaluate_splits(score, "made", splits=2)
    assert [r.cmc[0] for r in found.rankings] == [1.0, 0.0] and found.cmc[0] == 0.5 and abs(found.std - 0.7071) < 1e-3
