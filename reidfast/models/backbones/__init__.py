# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Networks from images to feature maps and features."""

from .adapter import Adapter, timm_backbone
from .base import Backbone
from .color_stripes import ColorStripes
from .inception_v3 import InceptionV3
from .mobilenet_v2 import MobileNetV2
from .osnet import OSNET_CHANNELS, OSNet
from .resnet import RESNET_LAYERS, ResNet

__all__ = [
    "OSNET_CHANNELS",
    "RESNET_LAYERS",
    "Adapter",
    "Backbone",
    "ColorStripes",
    "InceptionV3",
    "MobileNetV2",
    "OSNet",
    "ResNet",
    "timm_backbone",
]
