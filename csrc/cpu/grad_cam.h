// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <cstdint>

#include "csrc/common/grad_cam.h"
#include "csrc/cpu/isa.h"

REID_CPU_DECLARE(
    // out [B, L] = relu(sum_c weights [B, C] x features); blocks [begin, end) of the B * cam_cell_blocks(shape)
    template <typename T>
    void grad_cam_forward(const T* features, const T* weights, CamShape shape, int64_t begin, int64_t end, T* out);

    // grad_features as features, grad_weights [B, C], either may be null; blocks [begin, end) of the
    // B * cam_channel_blocks(shape)
    template <typename T>
    void grad_cam_backward(const T* grad, const T* out, const T* features, const T* weights, CamShape shape,
                           int64_t begin, int64_t end, T* grad_features, T* grad_weights);)

namespace reidfast::cpu {
constexpr int64_t kCamCells = 128;     // cells of one forward task
constexpr int64_t kCamChannels = 128;  // channels of one backward task
inline int64_t cam_cell_blocks(CamShape s) { return (s.cells + kCamCells - 1) / kCamCells; }
inline int64_t cam_channel_blocks(CamShape s) { return (s.channels + kCamChannels - 1) / kCamChannels; }
}  // namespace reidfast::cpu
