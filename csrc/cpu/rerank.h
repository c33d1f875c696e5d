// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// k-reciprocal re-ranking without an array of N x N: nearest neighbours kept while distance blocks stream by,
// neighbourhoods as sorted id lists, weights as sparse rows, Jaccard distances through inverted lists.
#pragma once

#include <cstdint>

#include "csrc/common/rerank.h"
#include "csrc/cpu/isa.h"

namespace reidfast::cpu {

// The `k` nearest of each item seen so far, ascending by (distance, id), and its largest distance. Within the lists an
// item's own id is kSelf, so that it stands before its duplicates; kNone fills places not yet taken.
struct NeighbourLists {
  static constexpr int32_t kSelf = -1, kNone = INT32_MAX;
  float* distance;  // [n, k]
  int32_t* id;      // [n, k]
  float* bound;     // [n]: distance[:, k - 1], the filter that nearly every candidate fails
  float* largest;   // [n]
  int64_t k;
};

// A block of distances d [rows, columns], row stride ld, between items row0 ... and items column0 ...
struct DistanceBlock {
  const float* d;
  int64_t ld, rows, columns, row0, column0;
  bool square;    // offer d^2
  bool triangle;  // offer the pairs above the diagonal alone: the block is square and stands on it
};

}  // namespace reidfast::cpu

REID_CPU_DECLARE(
    // Offers the columns of a block to the lists of its rows [begin, end) ...
    void rerank_offer_rows(const DistanceBlock& block, const NeighbourLists& lists, int64_t begin, int64_t end);
    // ... and its rows to the lists of its columns [begin, end).
    void rerank_offer_columns(const DistanceBlock& block, const NeighbourLists& lists, int64_t begin, int64_t end);

    // Small neighbourhoods H(j), j in [begin, end): sets [n, k1_half] ascending, sizes [n]. ids [n, k], -1 = none.
    void rerank_half_sets(const int32_t* ids, int64_t k, int64_t k1_half, int64_t begin, int64_t end, int32_t* sets,
                          int32_t* sizes);

    // Expanded neighbourhood R*(i): columns ascending, *size of them. columns [k1 * (k1_half + 1)].
    void rerank_set_row(const int32_t* ids, int64_t k, const int32_t* half_sets, const int32_t* half_sizes,
                        const RerankOptions& options, int64_t i, int32_t* columns, int64_t* size);

    // Weights of a set of n columns, sum 1. distances [n items, k] those of ids.
    void rerank_weight_row(const int32_t* ids, const float* distances, const float* largest, int64_t k,
                           const RerankPairs& pairs, const RerankOptions& options, int64_t i, const int32_t* columns,
                           int64_t n, float* weights);

    // Local query expansion of row i: mean of the rows of its first `options.k2` neighbours, *size entries.
    // sum [n] zero, bits [n / 64 + 1] zero; both are left zero.
    void rerank_expand_row(const int32_t* ids, int64_t k, const RerankRows& v, int64_t n, const RerankOptions& options,
                           int64_t i, float* sum, uint64_t* bits, int32_t* columns, float* values, int64_t* size);

    // Jaccard distances of row i of v to all rows in `inverse` (v by columns; its entries hold row - offset in
    // [0, targets)) with which it shares weight, ascending: *size of them. columns, distances [targets]; sum [targets],
    // bits as above.
    void rerank_jaccard_row(const RerankRows& v, const RerankRows& inverse, int64_t targets, bool store_half, int64_t i,
                            float* sum, uint64_t* bits, int32_t* columns, float* distances, int64_t* size);

    // x . y (product) or |x - y|^2 of features [dim], summed in double.
    void rerank_pair(const float* x, const float* y, int64_t dim, bool product, double* result);

    // x [n] <- max(x, 0)
    void rerank_clamp(float* x, int64_t n);

    // base distances d [n] of one query to the gallery rows g0 ... -> final distances, in place. jaccard: its sparse
    // row, entries [first, last). scratch [n].
    void rerank_final_row(float* d, int64_t n, int64_t g0, float largest, double lambda, bool blend_raw,
                          const RerankOptions& options, const RerankRows& jaccard, int64_t first, int64_t last,
                          float* scratch);)
