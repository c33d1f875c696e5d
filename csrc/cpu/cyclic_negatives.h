// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <cstdint>

#include "csrc/common/cyclic_negatives.h"
#include "csrc/cpu/isa.h"

REID_CPU_DECLARE(
    // chosen [A, count]: the `count` centres nearest to an anchor, its own left out, by (distance, index); anchors
    // [begin, end). anchors [A, D], centres [B, D]; row [B] is scratch of this call.
    template <typename A> void cyclic_candidates(const A* anchors, int64_t lda, const A* centres, int64_t ldc,
                                                 int64_t dim, int64_t num_centres, const int64_t* own, int64_t count,
                                                 int64_t begin, int64_t end, A* row, int64_t* chosen);

    // accepted [A, count]: whether an anchor's own centre is not among the first r of a candidate's ranking; candidates
    // [begin, end). row [B] is scratch of this call.
    template <typename A>
    void cyclic_accept(const A* centres, int64_t ldc, int64_t dim, int64_t num_centres, const int64_t* own,
                       const int64_t* chosen, int64_t num_anchors, int64_t count, int64_t r, int64_t begin, int64_t end,
                       A* row, bool* accepted);)
