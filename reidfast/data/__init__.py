# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Data sets as tables of (path, pid, camid), images decoded on demand, and rendered people that need no download."""

from reidfast.data import cuhk03, folder, market1501, msmt17, splits  # noqa: F401  (imported to register their readers)
from reidfast.data.cache import ImageCache, cached
from reidfast.data.images import EvalTransform, ImageDataset, decode
from reidfast.data.records import Record, Records, ReidData, concatenate, split_identities
from reidfast.data.registry import DataWarning, data_root, load, names
from reidfast.data.samplers import IdentitySampler, ShuffleSampler, shard
from reidfast.data.synthetic import World, contact_sheet, write_synthetic
from reidfast.data.transforms import BatchAugment, SurrogateTransform, TrainTransform, Views

__all__ = [
    "BatchAugment",
    "DataWarning",
    "EvalTransform",
    "IdentitySampler",
    "ImageCache",
    "ImageDataset",
    "Record",
    "Records",
    "ReidData",
    "ShuffleSampler",
    "SurrogateTransform",
    "TrainTransform",
    "Views",
    "World",
    "cached",
    "concatenate",
    "contact_sheet",
    "data_root",
    "decode",
    "load",
    "names",
    "shard",
    "split_identities",
    "write_synthetic",
]
