# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Work over whole data sets: features of every image, kept in files."""

from .compare import Difference, paired_bootstrap
from .extract import extract
from .features import FeatureFile, FeatureFileError, FeatureTable, read_features, write_features

__all__ = [
    "Difference",
    "FeatureFile",
    "FeatureFileError",
    "FeatureTable",
    "extract",
    "paired_bootstrap",
    "read_features",
    "write_features",
]
