// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <cstdint>

#include "csrc/common/batch_hard.h"
#include "csrc/cpu/isa.h"

namespace reidfast::cpu {

template <typename A>
struct HardPairs {
  A *d_ap, *d_an;        // [B]
  int64_t *i_ap, *i_an;  // [B]
};

// The pairs of one kind (positives or negatives) as the backward pass reads them.
template <typename A>
struct ChosenPairs {
  const A* grad;         // [B] upstream, or null
  const A* d;            // [B]
  const int64_t* index;  // [B], -1: none
  const int64_t* heads;  // [B] the first anchor that chose a row, -1: none ...
  const int64_t* next;   // [B] ... and from an anchor the next one of the same row, ascending
};

}  // namespace reidfast::cpu

REID_CPU_DECLARE(
    // sq_norms [B] of rows [begin, end) of x [B, D]
    template <typename A>
    void batch_hard_norms(const A* x, int64_t ldx, int64_t dim, int64_t begin, int64_t end, A* sq_norms);

    // Rows [begin, end) of x [B, D]. products [end - begin, B] = <x_i, x_j>, overwritten; with sq_norms [B] they rule
    // out most pairs. Null: every pair is computed directly.
    template <typename A>
    void batch_hard_rows(const A* x, int64_t ldx, int64_t dim, int64_t num_rows, const int64_t* labels, A* products,
                         const A* sq_norms, int64_t begin, int64_t end, HardPairs<A> out);

    // grad_x [B, D], rows [begin, end)
    template <typename A>
    void batch_hard_backward_rows(const A* x, int64_t ldx, int64_t dim, ChosenPairs<A> positives,
                                  ChosenPairs<A> negatives, int64_t begin, int64_t end, A* grad_x);)
