// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"

REID_CPU_DECLARE(
    // logits [B, K, L] -> weights [B, K, padded_cells], zeros past L, and where not null attention [B, K, L] and
    // overlap [B]; samples [begin, end). scratch: K * padded_cells values.
    template <typename T, typename A>
    void diverse_attention_softmax(const T* logits, int64_t maps, int64_t cells, int64_t padded_cells, int64_t begin,
                                   int64_t end, A* weights, T* attention, A* overlap, A* scratch);

    // grad_weights [B, parts, K, padded_cells] to be summed over parts, grad_attention [B, K, L], grad_overlap [B],
    // each null where nobody asks -> grad_logits [B, K, L]. scratch: (3 * padded_cells + K) * K values.
    template <typename T, typename A>
    void diverse_attention_logits(const A* weights, const A* grad_weights, int64_t parts, const T* grad_attention,
                                  const A* grad_overlap, int64_t maps, int64_t cells, int64_t padded_cells,
                                  int64_t begin, int64_t end, T* grad_logits, A* scratch);)
