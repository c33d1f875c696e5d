// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include "csrc/common/set_pool.h"
#include "csrc/cuda/types.h"

namespace reidfast::cuda {

// Into how many parts the frames of every set are cut, so that few large sets fill the GPU too.
int set_pool_splits(int64_t num_sets, int64_t num_frames, int64_t dim);

// out [S, D] = weighted mean of each set's frames. scores [T]. partial [splits, S, D], needed where splits > 1.
template <typename T, typename A>
void set_pool(const SetFrames<T>& x, const A* scores, SetPoolWeighting weighting, int64_t num_sets, int64_t num_frames,
              int splits, A* partial, T* out, cudaStream_t stream);

// grad [S, D] -> grad_x [T, D] and grad_scores [T], either may be null. weights [T] is scratch, and so is dots [T],
// which is needed where grad_scores is.
template <typename T, typename A>
void set_pool_backward(const SetFrames<T>& x, const A* scores, SetPoolWeighting weighting, int64_t num_sets,
                       int64_t num_frames, const T* grad, A* weights, A* dots, T* grad_x, A* grad_scores,
                       cudaStream_t stream);

}  // namespace reidfast::cuda
