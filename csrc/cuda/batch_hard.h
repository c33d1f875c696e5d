// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include "csrc/common/batch_hard.h"
#include "csrc/cuda/types.h"

namespace reidfast::cuda {

// Into how many parts the columns are cut, so that a small batch fills the GPU too.
int batch_hard_splits(int64_t rows);

// x [B, D] -> d_ap, d_an, i_ap, i_an [B]; partial_sq [splits, 2, B] and partial_index [splits, 2, B] are scratch.
template <typename T, typename A>
void batch_hard(const T* x, int64_t ldx, int64_t rows, int64_t dim, const int64_t* labels, int splits, A* partial_sq,
                int64_t* partial_index, A* d_ap, A* d_an, int64_t* i_ap, int64_t* i_an, cudaStream_t stream);

// grad_x [B, D]; grad_ap, grad_an [B] may be null.
template <typename T, typename A>
void batch_hard_backward(const T* x, int64_t ldx, int64_t rows, int64_t dim, const A* grad_ap, const A* grad_an,
                         const A* d_ap, const A* d_an, const int64_t* i_ap, const int64_t* i_an, T* grad_x,
                         cudaStream_t stream);

}  // namespace reidfast::cuda
