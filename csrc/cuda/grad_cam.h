// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include "csrc/common/grad_cam.h"
#include "csrc/cuda/types.h"

namespace reidfast::cuda {

// out [B, L]
template <typename T>
void grad_cam(const T* features, const T* weights, int64_t batch, CamShape shape, T* out, cudaStream_t stream);

// grad_features as features, grad_weights [B, C]; either may be null.
template <typename T>
void grad_cam_backward(const T* grad, const T* out, const T* features, const T* weights, int64_t batch, CamShape shape,
                       T* grad_features, T* grad_weights, cudaStream_t stream);

}  // namespace reidfast::cuda
