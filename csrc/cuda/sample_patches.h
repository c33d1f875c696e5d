// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include "csrc/cuda/patches.h"

namespace reidfast::cuda {

// Channels that one block takes; the partial sums of theta's gradient are [B, M, ceil(C / this), 2, 3].
constexpr int64_t kSampleChannels = 64;

// Whether the backward sums of a map of that many cells fit in shared memory; otherwise it needs `sums`, zeros of
// [B, C, cells].
template <typename A>
bool sample_patches_fits(int64_t cells);

// theta [B, M, 2, 3] -> out, maps of h * w cells, B * M of them
template <typename T, typename A>
void sample_patches(const Maps<const T>& map, const A* theta, const Grid& grid, int64_t batch, int64_t num_patches,
                    const Maps<T>& out, cudaStream_t stream);

// grad as out above -> grad_map (data may be null) and grad_theta [B, M, 2, 3] (may be null, else partial is needed)
template <typename T, typename A>
void sample_patches_backward(const Maps<const T>& map, const A* theta, const Grid& grid, int64_t batch,
                             int64_t num_patches, const Maps<const T>& grad, const Maps<T>& grad_map, A* sums,
                             A* partial, A* grad_theta, cudaStream_t stream);

}  // namespace reidfast::cuda
