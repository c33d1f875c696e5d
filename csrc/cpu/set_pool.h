// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <cstdint>

#include "csrc/common/set_pool.h"
#include "csrc/cpu/isa.h"

namespace reidfast::cpu {

// How T frames are divided into S sets: ragged by `offsets` [S+1], or (offsets null) `frames` per set.
struct Sets {
  const int64_t* offsets;
  int64_t frames;
  int64_t begin(int64_t s) const { return offsets ? offsets[s] : s * frames; }
  int64_t end(int64_t s) const { return offsets ? offsets[s + 1] : (s + 1) * frames; }
};

// Frame t of set s starts at data + s * set_stride + (t - first frame of s, or t itself where ragged) * frame_stride;
// its D values are adjacent.
template <typename T>
struct Frames {
  const T* data;
  int64_t set_stride, frame_stride, dim;
  Sets sets;
  const T* at(int64_t s, int64_t t) const {
    return data + s * set_stride + (sets.offsets ? t : t - s * sets.frames) * frame_stride;
  }
};

}  // namespace reidfast::cpu

REID_CPU_DECLARE(
    // scores [T] -> weights [T], sets [begin, end)
    template <typename A> void set_pool_weights(const A* scores, Sets sets, SetPoolWeighting weighting, int64_t begin,
                                                int64_t end, A* weights);

    // out [S, D] = sum over a set of weight x frame; sets [begin, end)
    template <typename T, typename A>
    void set_pool_sum(const Frames<T>& x, const A* weights, int64_t begin, int64_t end, T* out);

    // grad_x [T, D] = weight x grad [S, D] and dots [T] = <frame, grad>, either may be null; frames [begin, end) of
    // num_sets sets
    template <typename T, typename A>
    void set_pool_backward_frames(const Frames<T>& x, const A* weights, const T* grad, int64_t num_sets, int64_t begin,
                                  int64_t end, T* grad_x, A* dots);

    // dots [T] -> gradient of the scores [T]; sets [begin, end)
    template <typename A>
    void set_pool_backward_scores(const A* scores, const A* weights, const A* dots, Sets sets,
                                  SetPoolWeighting weighting, int64_t begin, int64_t end, A* grad_scores);)
