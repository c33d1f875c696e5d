// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <cstdint>

#include "csrc/common/set_pool.h"
#include "csrc/cpu/isa.h"

REID_CPU_DECLARE(
    // scores [T] -> weights [T], sets [begin, end)
    template <typename A> void set_pool_weights(const A* scores, SetRanges sets, SetPoolWeighting weighting,
                                                int64_t begin, int64_t end, A* weights);

    // out [S, D] = sum over a set of weight x frame; sets [begin, end)
    template <typename T, typename A>
    void set_pool_sum(const SetFrames<T>& x, const A* weights, int64_t begin, int64_t end, T* out);

    // grad_x [T, D] = weight x grad [S, D] and dots [T] = <frame, grad>, either may be null; frames [begin, end) of
    // num_sets sets
    template <typename T, typename A>
    void set_pool_backward_frames(const SetFrames<T>& x, const A* weights, const T* grad, int64_t num_sets,
                                  int64_t begin, int64_t end, T* grad_x, A* dots);

    // dots [T] -> gradient of the scores [T]; sets [begin, end)
    template <typename A>
    void set_pool_backward_scores(const A* scores, const A* weights, const A* dots, SetRanges sets,
                                  SetPoolWeighting weighting, int64_t begin, int64_t end, A* grad_scores);)
