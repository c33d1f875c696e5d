# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Data sets as tables of (path, pid, camid), images decoded on demand, and rendered people that need no download."""

from reidfast.data import (  # noqa: F401  (imported to register their readers)
    cuhk03,
    cuhk_sysu,
    folder,
    market1501,
    msmt17,
    pets09,
    prw,
    splits,
    video,
)
from reidfast.data.cache import ImageCache, cached
from reidfast.data.clips import SetBatch, TrackletDataset, TripletSetSampler, collate_sets
from reidfast.data.images import EvalTransform, ImageDataset, decode
from reidfast.data.records import Record, Records, ReidData, concatenate, split_identities
from reidfast.data.registry import DataWarning, data_root, list_datasets, load_dataset
from reidfast.data.samplers import IdentitySampler, PairSampler, ShuffleSampler, shard_indices
from reidfast.data.search import Queries, Scenes, SearchData, list_search_datasets, load_search
from reidfast.data.siamese import Pairs, SiameseSampler
from reidfast.data.synthetic import Track, World, contact_sheet, write_synthetic, write_synthetic_tracklets
from reidfast.data.tracklets import Tracklet, Tracklets
from reidfast.data.transforms import BatchAugment, SurrogateTransform, TrainTransform, Views

__all__ = [
    "BatchAugment",
    "DataWarning",
    "EvalTransform",
    "IdentitySampler",
    "ImageCache",
    "ImageDataset",
    "PairSampler",
    "Pairs",
    "Queries",
    "Record",
    "Records",
    "ReidData",
    "Scenes",
    "SearchData",
    "SetBatch",
    "ShuffleSampler",
    "SiameseSampler",
    "SurrogateTransform",
    "Track",
    "Tracklet",
    "TrackletDataset",
    "Tracklets",
    "TrainTransform",
    "TripletSetSampler",
    "Views",
    "World",
    "cached",
    "collate_sets",
    "concatenate",
    "contact_sheet",
    "data_root",
    "decode",
    "list_datasets",
    "list_search_datasets",
    "load_dataset",
    "load_search",
    "shard_indices",
    "split_identities",
    "write_synthetic",
    "write_synthetic_tracklets",
]
