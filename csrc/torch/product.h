// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The matrix product of the CPU kernels' tiles, by the libraries that torch brings.
#pragma once

#include "csrc/torch/op.h"

namespace reidfast {

// Which of them: "onednn" or "blas". One choice for a process, made from the processor alone, so that processes on
// like machines have the same bits.
const char* product_library();

// c = a b^T, or c += a b^T where `accumulate`. a [M, K] and c [M, N] with contiguous rows, b [N, K] of any strides,
// float32 or float64. Call it from inside a parallel region, where either library runs on one thread.
void product(const Tensor& c, const Tensor& a, const Tensor& b, bool accumulate);

}  // namespace reidfast
