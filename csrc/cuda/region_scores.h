// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include "csrc/common/region_scores.h"
#include "csrc/cuda/types.h"

namespace reidfast::cuda {

// scores [P]. tables [B, H+1, W+1] and whole [B] are scratch. An image_index outside [0, B) scores NaN.
template <typename T>
void region_scores(const T* attention, int64_t batch, int64_t height, int64_t width, Boxes boxes,
                   const int64_t* image_index, int64_t num_boxes, double* tables, bool* whole, T* scores,
                   cudaStream_t stream);

// grad_attention [B, H, W]; cells [P] and shares [P] are scratch.
template <typename T>
void region_scores_backward(const T* grad, int64_t batch, int64_t height, int64_t width, Boxes boxes,
                            const int64_t* image_index, int64_t num_boxes, CellRange* cells, double* shares,
                            T* grad_attention, cudaStream_t stream);

}  // namespace reidfast::cuda
