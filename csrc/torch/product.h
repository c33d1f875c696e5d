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

// a b^T, or sum + a b^T: in `out`, or in memory of the library's own. a [M, K] and out [M, N] with contiguous rows, b
// [N, K] of any strides, float32 or float64. sum is what an earlier call for the same `out` returned. Call it from
// inside a parallel region, where either library runs on one thread.
Tensor product(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& sum = {});

// out = a b^T, or out += a b^T where `accumulate`.
void product_into(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate);

}  // namespace reidfast
