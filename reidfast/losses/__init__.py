# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Losses of person re-identification, plain ``nn.Module``s over ``reidfast.ops``: usable in anyone's training loop."""

from __future__ import annotations

from reidfast.losses.attention import AttentionLoss, SoftErase
from reidfast.losses.casn import CASNLoss
from reidfast.losses.centre import CentreLoss
from reidfast.losses.circle import CircleLoss
from reidfast.losses.consistency import ConsistencyLoss
from reidfast.losses.cross_entropy import CrossEntropyLoss
from reidfast.losses.diversity import DiversityLoss, KLDiversityLoss
from reidfast.losses.ipfl import IPFL
from reidfast.losses.oim import OIMLoss
from reidfast.losses.pedal import PEDAL
from reidfast.losses.region_shrinkage import RegionShrinkageLoss
from reidfast.losses.rru_stim import RRUSTIMLoss
from reidfast.losses.set_triplet import SetTripletLoss
from reidfast.losses.triplet import NearestPositiveTripletLoss, TripletLoss

__all__ = [
    "IPFL",
    "PEDAL",
    "AttentionLoss",
    "CASNLoss",
    "CentreLoss",
    "CircleLoss",
    "ConsistencyLoss",
    "CrossEntropyLoss",
    "DiversityLoss",
    "KLDiversityLoss",
    "NearestPositiveTripletLoss",
    "OIMLoss",
    "RRUSTIMLoss",
    "RegionShrinkageLoss",
    "SetTripletLoss",
    "SoftErase",
    "TripletLoss",
]
