// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include "csrc/common/rerank.h"
#include "csrc/cuda/types.h"

namespace reidfast::cuda {

// Nearest-neighbour lists of n items: ids [n, k] nearest first, -1 = none, and their distances; largest [n].
struct RerankLists {
  const int32_t* id;
  const float* distance;
  const float* largest;
  int64_t n, k;
};

// Bytes of shared memory that a block of rerank_sets, or of rerank_expand, asks for; more than kRerankSharedLimit
// cannot be served.
int64_t rerank_sets_shared(const RerankOptions& options);
int64_t rerank_expand_shared(const RerankOptions& options, int64_t longest);
constexpr int64_t kRerankSharedLimit = 96 * 1024;

// |x| of every item, and 1 / |x|, 0 for rows of zeros: norm, inverse_norm [n], either null.
void rerank_norms(const RerankPairs& pairs, double* norm, double* inverse_norm, cudaStream_t stream);

// The first `keep` entries of the lists, those that rounding may have put in the wrong order sorted again by their
// distance in double, then by id. norm [n]: |x| of every item. ids, distances [n, keep].
int64_t rerank_resolve_ties_shared(int64_t k);
void rerank_resolve_ties(const RerankLists& lists, const RerankPairs& pairs, const double* norm, int64_t keep,
                         bool cosine, bool square, int32_t* ids, float* distances, cudaStream_t stream);

// Small neighbourhoods H(j): sets [n, k1_half] ascending, sizes [n].
void rerank_half_sets(const RerankLists& lists, int64_t k1_half, int32_t* sets, int32_t* sizes, cudaStream_t stream);

// Expanded neighbourhoods R*(i): sizes [n], or (indptr given) columns at indptr[i], ascending.
void rerank_sets(const RerankLists& lists, const int32_t* half_sets, const int32_t* half_sizes,
                 const RerankOptions& options, int64_t* sizes, const int64_t* indptr, int32_t* columns,
                 cudaStream_t stream);

// Weights of the sets, each row's sum 1.
void rerank_weights(const RerankLists& lists, const RerankPairs& pairs, const RerankOptions& options,
                    const int64_t* indptr, const int32_t* columns, float* weights, cudaStream_t stream);

// Local query expansion: mean of the rows of the first `options.k2` neighbours, none longer than `longest`. Sizes,
// or columns and values.
void rerank_expand(const RerankLists& lists, const RerankRows& v, const RerankOptions& options, int64_t longest,
                   int64_t* sizes, const int64_t* indptr, int32_t* columns, float* values, cudaStream_t stream);

// Jaccard distances of rows [0, rows) of v to all rows in `inverse` (v by columns, rows - offset ascending) that share
// an item: sizes, or columns and distances. scratch: rerank_jaccard_scratch(rows, targets) bytes, zero, and left zero.
int64_t rerank_jaccard_scratch(int64_t rows, int64_t targets);
void rerank_jaccard(const RerankRows& v, const RerankRows& inverse, int64_t rows, int64_t targets, bool store_half,
                    void* scratch, int64_t* sizes, const int64_t* indptr, int32_t* columns, float* distances,
                    cudaStream_t stream);

// Base distances d [rows, n] -> final distances, in place. largest [rows]; jaccard: rows over the n columns.
void rerank_final(float* d, int64_t rows, int64_t n, const float* largest, float lambda, float rest, bool blend_raw,
                  const RerankOptions& options, const RerankRows& jaccard, cudaStream_t stream);

}  // namespace reidfast::cuda
