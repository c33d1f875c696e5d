// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include "csrc/cuda/patches.h"

namespace reidfast::cuda {

// Channels that one block of the backward pass takes; grad_weights is [B, ceil(C / this), M, cells].
constexpr int64_t kPoolChannels = 128;

// theta [B, M, 2, 3] -> weights [B, M, cells] and out [B, M, C] = weights x map
template <typename T, typename A>
void pool_patches(const Maps<const T>& map, const A* theta, const Grid& grid, int64_t batch, int64_t num_patches,
                  A* weights, T* out, cudaStream_t stream);

// grad [B, M, C] -> grad_map (data may be null) and grad_theta [B, M, 2, 3] (may be null, else grad_weights is needed).
// weights [B, M, cells] is scratch.
template <typename T, typename A>
void pool_patches_backward(const Maps<const T>& map, const A* theta, const Grid& grid, int64_t batch,
                           int64_t num_patches, const T* grad, const Maps<T>& grad_map, A* weights, A* grad_weights,
                           A* grad_theta, cudaStream_t stream);

}  // namespace reidfast::cuda
