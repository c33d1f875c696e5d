// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include "csrc/common/gated_update.h"
#include "csrc/cuda/types.h"

namespace reidfast::cuda {

// out [B, rows, cols]; letters of GateShape.
template <typename T>
void gated_update(const T* down, const T* along, const T* state, const T* x, GateShape shape, T* out,
                  cudaStream_t stream);

// grad_state, grad_x [B, rows, cols], grad_down [B, rows], grad_along [B, cols]; partial [B, chunks, cols] is scratch.
template <typename T, typename A>
void gated_update_backward(const T* grad, const T* down, const T* along, const T* state, const T* x, GateShape shape,
                           A* partial, T* grad_state, T* grad_x, T* grad_down, T* grad_along, cudaStream_t stream);

}  // namespace reidfast::cuda
