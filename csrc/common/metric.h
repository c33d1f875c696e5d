// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

namespace reidfast {

// Numbered as in METRICS in reidfast/evaluation/_core/options.py.
enum class Metric : int { kCosine = 0, kEuclidean = 1, kSquaredEuclidean = 2, kDot = 3 };

}  // namespace reidfast
