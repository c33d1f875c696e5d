// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include "csrc/common/cyclic_negatives.h"
#include "csrc/cuda/types.h"

namespace reidfast::cuda {

// How many blocks share the anchors; each needs a row of scratch.
int64_t cyclic_negatives_blocks(int64_t num_anchors);

// negatives [A]. anchors [A, D], centres [B, D]; rows [blocks, B] is scratch. An own outside [0, B) gives -1.
template <typename T, typename A>
void cyclic_negatives(const T* anchors, int64_t lda, const T* centres, int64_t ldc, int64_t dim, int64_t num_anchors,
                      int64_t num_centres, const int64_t* own, int64_t r, int64_t candidates, A* rows,
                      int64_t* negatives, cudaStream_t stream);

}  // namespace reidfast::cuda
