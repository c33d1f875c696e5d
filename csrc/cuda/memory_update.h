// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include "csrc/cuda/types.h"

namespace reidfast::cuda {

// bank [M, N, dim], rows of adjacent values; values [M, count, dim] contiguous, in the accumulation type; indices
// [count], -1 = skip. In batch order: row <- momentum * row + (1 - momentum) * value, then row / |row| where asked and
// |row| > 0.
template <typename T, typename A>
void memory_update(T* bank, int64_t parts, int64_t rows, int64_t dim, int64_t part_stride, int64_t row_stride,
                   const A* values, const int64_t* indices, int64_t count, A momentum, bool normalize,
                   cudaStream_t stream);

}  // namespace reidfast::cuda
