// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <cstdint>

#include "csrc/common/gated_update.h"
#include "csrc/cpu/isa.h"

REID_CPU_DECLARE(
    // out [B, rows, cols]; rows [begin, end) of the B * rows
    template <typename T> void gated_update_forward(const T* down, const T* along, const T* state, const T* x,
                                                    GateShape shape, int64_t begin, int64_t end, T* out);

    // Tasks [begin, end) of the B * chunks: grad_state, grad_x [B, rows, cols], grad_down [B, rows] and, per task, its
    // share of grad_along, partial [B, chunks, cols].
    template <typename T, typename A>
    void gated_update_backward(const T* grad, const T* down, const T* along, const T* state, const T* x,
                               GateShape shape, int64_t begin, int64_t end, T* grad_state, T* grad_x, T* grad_down,
                               A* partial);)
