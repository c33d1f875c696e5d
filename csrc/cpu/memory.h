// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// One pass over a memory bank, tile by tile: running k best, running log-sum-exp of the rest and running
// softmax-weighted row sum of the rest. The products of a tile (queries x rows, weights x rows) are torch's BLAS; what
// lies between them is here.
#pragma once

#include <cstdint>

#include "csrc/common/memory.h"
#include "csrc/cpu/isa.h"

namespace reidfast::cpu {

// Rows [first, first + count) of one bank; the tile is `width` >= count columns wide, the excess is padding.
template <typename T, typename A>
struct MemoryTile {
  const T* bank;  // [N, dim] row stride `stride`: rows of earlier tiles are read again when they fall out of the k best
  int64_t stride, dim;
  int64_t first, count, width;
  const A* offsets;  // [width] offset(|w|^2), or null for dot
};

// A block of queries and what the pass keeps of each. `rest` is everything but the k best (or but the target). Logits
// of the pass leave out offset(|x|^2), the same for all rows of a query: memory_finish adds it in double.
template <typename A>
struct MemoryQueries {
  int64_t count, k;
  const int64_t* exclude;    // [count] or null
  const int64_t* targets;    // [count] or null; then k = 0
  MemoryCandidate<A>* best;  // [count, k] heap, the worst at the root
  int64_t* filled;           // [count]
  A* rest_max;               // [count]
  double* rest_sum;          // [count] sum of exp(logit - rest_max)
  A* rest_rows;              // [count, dim] sum of exp(logit - rest_max) * row, or null
};

// What the pass left behind for query q in chunk c of the bank: index c * queries + q.
template <typename A>
struct MemoryPartials {
  int64_t chunks, queries, k;
  MemoryCandidate<A>* best;
  int64_t* filled;
  A* rest_max;
  double* rest_sum;
  A* rest_rows;
};

// Results of one query; null where nobody asks.
template <typename A>
struct MemoryOutputs {
  A* loss;         // [queries]
  A* lse;          // [queries]
  double* state;   // [queries]: lse - offset(|x|^2), what the logits of the backward pass are taken relative to
  double* shares;  // [queries, k]: softmax of the k best
  A* topk_logits;  // [queries, k]
  int64_t* topk;   // [queries, k]
  A* direction;    // [queries, dim]: d loss / dx, or d lse / dx where loss is null
};

// d loss / d logit of single (query, row) pairs, on top of grad_lse * softmax or in its place.
template <typename A>
struct MemoryPicks {
  const int64_t* rows;  // [queries, k], -1 = none
  const A* weights;     // [queries, k]
  int64_t k;
  bool replace;
};

}  // namespace reidfast::cpu

REID_CPU_DECLARE(
    // rows [count, dim] -> tile [width, dim] (where not null), offsets [width] (where not null); padding rows are zero
    template <typename T, typename A> void memory_load_tile(const T* rows, int64_t stride, int64_t count, int64_t width,
                                                            int64_t dim, MemoryMetric<A> metric, A* tile, A* offsets);
    // products [count, width] = x [count, dim] times the rows of the tile as they stand in the bank, by plain loops
    template <typename T, typename A>
    void memory_small_products(const MemoryTile<T, A>& tile, const A* x, int64_t count, A* products);
    // sum [count, dim] += products [count, width] times the rows of the tile
    template <typename T, typename A>
    void memory_small_rows(const MemoryTile<T, A>& tile, const A* products, int64_t count, A* sum);
    // products [queries, width] -> exp(logit - rest_max), zero for the k best, the target, the excluded and the padding
    template <typename T, typename A> void memory_select(const MemoryTile<T, A>& tile, const MemoryQueries<A>& queries,
                                                         MemoryMetric<A> metric, A* products);
    // queries [begin, end): merge the chunks in order, recompute the k best directly; x [queries, dim], targets
    // [queries] or null
    template <typename T, typename A>
    void memory_finish(const T* bank, int64_t stride, int64_t dim, const A* x, const int64_t* targets,
                       MemoryMetric<A> metric, const MemoryPartials<A>& partials, int64_t begin, int64_t end,
                       const MemoryOutputs<A>& out);
    // queries [begin, end): grad_x [queries, dim] = grad_lse * direction + sum over picks of weight * d logit / dx;
    // accumulated in A
    template <typename T, typename A>
    void memory_grad_x(const T* bank, int64_t stride, int64_t dim, const A* x, const A* grad_lse, const A* direction,
                       const MemoryPicks<A>& picks, MemoryMetric<A> metric, int64_t begin, int64_t end, A* grad_x);
    // products [queries, width] -> d loss / d logit; adds its column sums to sums [width]
    template <typename T, typename A>
    void memory_weights(const MemoryTile<T, A>& tile, int64_t queries, const int64_t* exclude, const A* grad_lse,
                        const double* state, const MemoryPicks<A>& picks, MemoryMetric<A> metric, A* products, A* sums);
    // grad [count, dim] = slope * (weighted - sums * row) (Euclidean) or slope * weighted (dot)
    template <typename T, typename A> void memory_grad_rows(const MemoryTile<T, A>& tile, const A* weighted,
                                                            const A* sums, MemoryMetric<A> metric, T* grad);)
