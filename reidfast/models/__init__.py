# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Models by name, and their weights.

model = create_model("osnet_x0_25", weights="osnet_x0_25_msmt17.npz").eval()
features = model(images)              # [B, 512]
cells = model.forward_map(images)     # [B, 128, 16, 8] of 256 x 128 pixels
"""

from .backbones import (
    Adapter,
    Backbone,
    ColorStripes,
    InceptionV3,
    MobileNetV2,
    OSNet,
    ResNet,
)
from .baselines import IDE, PCB, Baseline, StrongBaseline
from .casn import CASN
from .cluster_contrast import ClusterContrast
from .drsta import DRSTA
from .npsm import NPSM, RegionEmbedder
from .paul import PatchNet
from .qan import QAN
from .registry import create_model, list_models, register_model
from .rru_stim import RRUSTIM
from .trained import Trained, is_trained, load_trained, read_card
from .video import VideoModel, feature_grid
from .weights import Loaded, WeightsError, load_weights, read_weights, save_weights, unfold_batch_norms

__all__ = [
    "CASN",
    "DRSTA",
    "IDE",
    "NPSM",
    "PCB",
    "QAN",
    "RRUSTIM",
    "Adapter",
    "Backbone",
    "Baseline",
    "ClusterContrast",
    "ColorStripes",
    "InceptionV3",
    "Loaded",
    "MobileNetV2",
    "OSNet",
    "PatchNet",
    "RegionEmbedder",
    "ResNet",
    "StrongBaseline",
    "Trained",
    "VideoModel",
    "WeightsError",
    "create_model",
    "feature_grid",
    "is_trained",
    "list_models",
    "load_trained",
    "load_weights",
    "read_card",
    "read_weights",
    "register_model",
    "save_weights",
    "unfold_batch_norms",
]
