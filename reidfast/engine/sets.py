# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Embedding and evaluating whole tracklets, of any lengths, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from reidfast.data import Records, ReidData, Tracklets, load_dataset
from reidfast.data.clips import CHOICES
from reidfast.data.images import EvalTransform
from reidfast.data.images import decode as decode_file
from reidfast.data.samplers import shard_indices
from reidfast.engine.extract import pick_device
from reidfast.engine.features import FeatureFile, FeatureTable
from reidfast.engine.progress import progress
from reidfast.evaluation import Ranking, rank

__all__ = ["SplitScores", "embed_sets", "evaluate_sets", "evaluate_splits", "extract_sets", "rank_sets", "take_frames"]


def take_frames(
    tracklets: Tracklets, choose: str | Callable[..., Any] = "all", n: int = 0, **options: Any
) -> Tracklets:
    """The tracklets with some of their frames, the same at every call: "chunks" of DRSTA, a middle "clip", "all".

    Args:
        tracklets: The whole ones.
        choose: One of `reidfast.data.clips.CHOICES`, or a function (length, n, None) -> indices.
        n: How many frames.
        **options: Of the choice (`at="middle"`).
    """
    if isinstance(choose, str):
        if choose not in CHOICES:
            raise ValueError(f"take_frames: expected choose among {', '.join(CHOICES)}, got {choose!r}")
        choose = CHOICES[choose]
    return tracklets.replace_rows([t.rows[choose(len(t.rows), n, None, **options)] for t in tracklets])


def _blocks(
    records: Records,
    rows: np.ndarray,
    transform: Callable[[Image.Image], Tensor],
    decode: Callable[[Records, int], Image.Image] | None,
    batch: int,
    workers: int,
    ends: np.ndarray | None = None,
) -> Iterator[Tensor]:
    """Frames in order, [b, 3, H, W] with b <= batch, two blocks decoded ahead; a block never crosses one of `ends`."""

    def one(row: int) -> Tensor:
        return transform(decode_file(records.absolute(row)) if decode is None else decode(records, row))

    cuts = np.arange(0, len(rows), batch) if ends is None else _cuts(ends, batch)
    spans = list(zip(cuts, [*cuts[1:], len(rows)], strict=True)) if len(rows) else []
    ahead: list[list[Future[Tensor]]] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for k in range(len(spans) + 2):
                if k < len(spans):
                    ahead.append([pool.submit(one, int(row)) for row in rows[spans[k][0] : spans[k][1]]])
                if k >= 2 and ahead:
                    yield torch.stack([future.result() for future in ahead.pop(0)])
        finally:
            for futures in ahead:
                for future in futures:
                    future.cancel()


def _cuts(ends: np.ndarray, batch: int) -> np.ndarray:
    starts = np.r_[0, ends[:-1]]
    return np.concatenate([np.arange(a, b, batch) for a, b in zip(starts, ends, strict=True)] or [np.empty(0, int)])


@torch.inference_mode()
def embed_sets(
    model: nn.Module,
    tracklets: Tracklets,
    *,
    size: tuple[int, int] = (256, 128),
    filter: str = "bilinear",
    transform: Callable[[Image.Image], Tensor] | None = None,
    batch: int = 64,
    device: str | torch.device = "cpu",
    decode: Callable[[Records, int], Image.Image] | None = None,
    workers: int = 2,
    show_progress: bool = False,
) -> Tensor:
    """Embeddings [S, D] of whole tracklets, on the CPU; never more than a few batches of frames in memory.

    A model serves in one of three ways, the first it has:

    - `encode_frames(images) -> (Tensor [b, ...], ...)` and `pool_frames(..., offsets) -> [S, D]`: the frames of all
      tracklets go through the network in full batches, whatever the tracklets' lengths; what is kept of a frame until
      its tracklet is complete is what `encode_frames` gives (QAN).
    - `embed_track(chunks) -> [D]`: one tracklet at a time, its frames in chunks in time order (DRSTA, RRU + STIM).
    - images [b, 3, H, W] -> embeddings of single images, whose mean over the tracklet is taken.

    Args:
        model: Put into evaluation mode, and back after.
        tracklets: Whole ones, or what `take_frames` left of them.
        size: (height, width) of the input.
        filter: Resize filter.
        transform: From a picture to the input, in place of resizing and normalising by ImageNet's statistics.
        batch: Frames that go through the network at a time.
        device: See `extract`.
        decode: From (records, row) to a picture (an `ImageCache`); default: read the file.
        workers: Threads that decode.
        show_progress: A bar.
    """
    if batch < 1:
        raise ValueError(f"embed_sets: expected batch of at least 1, got {batch}")
    if not len(tracklets) or tracklets.lengths.min() < 1:
        raise ValueError("embed_sets: expected tracklets of at least one frame each, got an empty table or tracklet")
    network: Any = model
    device, training = pick_device(device), model.training
    transform = transform or EvalTransform(*size, filter)
    model.to(device).eval()
    by_track = hasattr(model, "embed_track") and not hasattr(model, "encode_frames")
    ends = tracklets.offsets[1:]
    out: list[Tensor] = []
    try:
        with progress(len(tracklets.rows), "embed", show=show_progress) as advance:
            blocks = _blocks(
                tracklets.frames, tracklets.rows, transform, decode, batch, workers, ends if by_track else None
            )
            moved = (block.to(device) for block in blocks)
            if by_track:
                for length in tracklets.lengths.tolist():
                    chunks = (next(moved) for _ in range(-(-length // batch)))
                    out.append(network.embed_track(chunks).float().cpu()[None])
                    for _ in chunks:  # a model that stops early
                        pass
                    advance(length)
            else:
                out = _pooled(model, moved, ends, advance)
    finally:
        model.train(training)
    found = torch.cat(out)
    if not torch.isfinite(found).all():
        bad = int((~torch.isfinite(found)).any(1).nonzero()[0])
        raise ValueError(f"embed_sets: the embedding of tracklet {bad} is NaN or infinite; check the weights")
    return found


def _pooled(model: Any, blocks: Iterator[Tensor], ends: np.ndarray, advance: Callable[[int], Any]) -> list[Tensor]:
    """Encode block by block; pool the tracklets that are complete, keep the frames of the one that is not."""
    encode = getattr(model, "encode_frames", None) or (lambda images: (model(images),))
    out: list[Tensor] = []
    kept: tuple[Tensor, ...] | None = None
    start = seen = complete = 0  # rows of `kept` begin at frame `start`
    for block in blocks:
        fresh = encode(block)
        kept = fresh if kept is None else tuple(torch.cat(pair) for pair in zip(kept, fresh, strict=True))
        seen += len(block)
        advance(len(block))
        upto = int(np.searchsorted(ends, seen, side="right"))
        if upto > complete:
            stop = int(ends[upto - 1])
            edges = np.r_[start, ends[complete:upto]] - start
            offsets = torch.from_numpy(edges.astype(np.int64)).to(block.device)
            whole = tuple(x[: stop - start] for x in kept)
            if hasattr(model, "pool_frames"):
                out.append(model.pool_frames(*whole, offsets).float().cpu())
            else:
                out.append(_mean(whole[0].float(), offsets).cpu())
            kept = tuple(x[stop - start :].clone() for x in kept)
            start, complete = stop, upto
    return out


def _mean(x: Tensor, offsets: Tensor) -> Tensor:
    from reidfast import ops

    return ops.set_pool(x, x.new_zeros(len(x)), offsets, weighting="softmax")


def extract_sets(
    model: nn.Module, tables: Mapping[str, Records], *, meta: Mapping[str, Any] | None = None, **options: Any
) -> FeatureFile:
    """One feature a tracklet of each table; a row's path is that of its first frame.

    Args:
        model: See `embed_sets`.
        tables: Tables of frames by split name, with the column `tracklet`.
        meta: Kept in the file.
        **options: Of `embed_sets`.

    Raises:
        ValueError: A table without the column `tracklet`.
    """
    made = {}
    for name, records in tables.items():
        if "tracklet" not in records.extra:
            raise ValueError(f"extract_sets: expected tables with the column tracklet, got {name} without it")
        sets = Tracklets.of(records)
        paths = tuple(records.paths[t.rows[0]] for t in sets)
        made[name] = FeatureTable(embed_sets(model, sets, **options).numpy(), sets.pids, sets.camids, paths)
    return FeatureFile(made, {**(meta or {}), "sets": True})


def rank_sets(
    query: Tensor,
    gallery: Tensor,
    query_sets: Tracklets,
    gallery_sets: Tracklets,
    *,
    protocol: str = "mars",
    **options: Any,
) -> Ranking:
    """`evaluation.rank` of embedded tracklets: a row is a tracklet."""
    q, g = query_sets, gallery_sets
    return rank(query, gallery, q.pids, g.pids, q.camids, g.camids, protocol=protocol, **options)


def evaluate_sets(
    model: nn.Module,
    data: ReidData,
    *,
    protocol: str = "mars",
    choose: str | Callable[..., Any] = "all",
    n: int = 0,
    choice: Mapping[str, Any] | None = None,
    **options: Any,
) -> Ranking | None:
    """Embed a data set's query and gallery tracklets and rank them; None where it has none.

    Where the gallery holds the query tracklets (`data.info["query_in_gallery"]`, as in MARS) they are embedded once.
    Over several processes each embeds its part: the queries are gathered, the gallery stays sharded.

    Args:
        model: See `embed_sets`.
        data: With the column `tracklet`.
        protocol: "mars" for MARS's official gallery, "mars_torchreid" for the other one; "market1501" elsewhere.
        choose: Frames of each tracklet at test; see `take_frames`.
        n: How many.
        choice: Options of the choice.
        **options: Of `embed_sets`.
    """
    if not len(data.query) or not len(data.gallery):
        return None
    query, gallery = Tracklets.of(data.query), Tracklets.of(data.gallery)
    small = [take_frames(t, choose, n, **(choice or {})) if choose != "all" or n else t for t in (query, gallery)]
    group, world, me = None, 1, 0
    if dist.is_available() and dist.is_initialized():
        group, world, me = dist.group.WORLD, dist.get_world_size(), dist.get_rank()
    part = np.asarray(shard_indices(len(gallery), me, world))
    y = embed_sets(model, small[1].select(part), **options)
    if data.info.get("query_in_gallery") and world == 1:
        numbers = gallery.extra["tracklet"]
        order = np.argsort(numbers)
        x = y[torch.from_numpy(order[np.searchsorted(numbers, query.extra["tracklet"], sorter=order)])]
    else:
        mine = np.asarray(shard_indices(len(query), me, world))
        x = embed_sets(model, small[0].select(mine), **options) if len(mine) else y[:0]
        if world > 1:
            pieces: list[Any] = [None] * world
            dist.all_gather_object(pieces, x.numpy())
            x = torch.from_numpy(np.concatenate(pieces))
    return rank_sets(x, y, query, gallery.select(part), protocol=protocol, group=group)


@dataclass(frozen=True)
class SplitScores:
    """Scores over the splits of a data set (iLIDS-VID, PRID2011: ten): means, and the spread between splits.

    Attributes:
        cmc: Mean over the splits, [max_rank].
        mean_ap: Mean over the splits.
        std: Standard deviation of rank-1 over the splits (n - 1).
        rankings: The ranking of each split.
    """

    cmc: np.ndarray
    mean_ap: float
    std: float
    rankings: tuple[Ranking, ...]


def evaluate_splits(
    score: Callable[[ReidData], Ranking], name: str, root: Any = None, *, splits: int = 10, **options: Any
) -> SplitScores:
    """Means over the splits of a data set.

    Args:
        score: Trains (where the method asks for it) and evaluates on one split.
        name: Name of the data set; its reader takes `split`.
        root: See `load_dataset`.
        splits: How many.
        **options: Of the reader.
    """
    found = tuple(score(load_dataset(name, root, split=k, **options)) for k in range(splits))
    first = np.array([r.cmc[0] for r in found])
    spread = float(first.std(ddof=1)) if splits > 1 else 0.0
    return SplitScores(np.mean([r.cmc for r in found], 0), float(np.mean([r.mean_ap for r in found])), spread, found)
