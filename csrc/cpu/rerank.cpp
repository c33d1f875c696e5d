// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/rerank.h"

#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>

#include "csrc/cpu/vec.h"

namespace reidfast::cpu::REID_ISA {

namespace {

constexpr int64_t kBlock = 32;  // candidates that one compare of `offer_columns` filters

float half(float x) { return static_cast<float>(static_cast<c10::Half>(x)); }

// Puts (d, id) into the ascending list of item `owner` if it is among the k nearest.
void offer(const NeighbourLists& lists, int64_t owner, float d, int32_t id) {
  float* distance = lists.distance + owner * lists.k;
  int32_t* ids = lists.id + owner * lists.k;
  int64_t at = lists.k - 1;
  if (!(d < distance[at] || (d == distance[at] && id < ids[at]))) return;
  for (; at > 0 && (d < distance[at - 1] || (d == distance[at - 1] && id < ids[at - 1])); --at) {
    distance[at] = distance[at - 1];
    ids[at] = ids[at - 1];
  }
  distance[at] = d;
  ids[at] = id;
  lists.bound[owner] = distance[lists.k - 1];
}

template <bool kSquare>
void offer_rows(const DistanceBlock& block, const NeighbourLists& lists, int64_t begin, int64_t end) {
  using V = AccVec<float>;
  constexpr int64_t w = kLanes<float>, step = 4 * w;
  const auto load = [](const float* x) {
    const V v = V::loadu(x);
    return kSquare ? v * v : v;
  };
  const auto larger = [](const V& x, const V& y) { return V::blendv(x, y, y > x); };  // x where y is NaN
  for (int64_t r = begin; r < end; ++r) {
    const float* d = block.d + r * block.ld;
    const int64_t owner = block.row0 + r;
    const auto offer_one = [&](int64_t c) {
      const float v = kSquare ? d[c] * d[c] : d[c];
      if (v <= lists.bound[owner]) offer(lists, owner, v, static_cast<int32_t>(block.column0 + c));
      return v;
    };
    V top0(lists.largest[owner]), top1 = top0, top2 = top0, top3 = top0;
    int64_t c = block.triangle ? r + 1 : 0;
    for (; c + step <= block.columns; c += step) {
      const V v0 = load(d + c), v1 = load(d + c + w), v2 = load(d + c + 2 * w), v3 = load(d + c + 3 * w);
      top0 = larger(top0, v0), top1 = larger(top1, v1), top2 = larger(top2, v2), top3 = larger(top3, v3);
      const V bound(lists.bound[owner]);
      const V hit = ((v0 <= bound) | (v1 <= bound)) | ((v2 <= bound) | (v3 <= bound));
      if (hit.zero_mask() == (1 << w) - 1) continue;
      for (int64_t i = c; i < c + step; ++i) offer_one(i);
    }
    float tops[w];
    larger(larger(top0, top1), larger(top2, top3)).store(tops);
    float largest = lists.largest[owner];
    for (const float t : tops) largest = t > largest ? t : largest;
    for (; c < block.columns; ++c) {
      const float v = offer_one(c);
      largest = v > largest ? v : largest;
    }
    lists.largest[owner] = largest;
  }
}

template <bool kSquare>
void offer_columns(const DistanceBlock& block, const NeighbourLists& lists, int64_t begin, int64_t end) {
  const float* bound = lists.bound + block.column0;
  float* __restrict largest = lists.largest + block.column0;
  for (int64_t r = 0; r < block.rows; ++r) {
    const float* __restrict d = block.d + r * block.ld;
    const int32_t id = static_cast<int32_t>(block.row0 + r);
    for (int64_t c0 = block.triangle ? std::max(begin, r + 1) : begin; c0 < end; c0 += kBlock) {
      const int64_t n = std::min(kBlock, end - c0);
      int hit = 0;
      if (n == kBlock) {
        for (int64_t c = c0; c < c0 + kBlock; ++c) {
          const float v = kSquare ? d[c] * d[c] : d[c];
          hit |= v <= bound[c];
          largest[c] = v > largest[c] ? v : largest[c];
        }
      } else {
        for (int64_t c = c0; c < c0 + n; ++c) {
          const float v = kSquare ? d[c] * d[c] : d[c];
          hit |= v <= bound[c];
          largest[c] = v > largest[c] ? v : largest[c];
        }
      }
      if (!hit) continue;
      for (int64_t c = c0; c < c0 + n; ++c) {
        const float v = kSquare ? d[c] * d[c] : d[c];
        if (v <= bound[c]) offer(lists, block.column0 + c, v, id);
      }
    }
  }
}

bool contains(const int32_t* ids, int64_t n, int32_t id) {
  int found = 0;
  for (int64_t i = 0; i < n; ++i) found |= ids[i] == id;
  return found;
}

// Those of the first k of list i that have i among their own first k, ascending.
int64_t reciprocal(const int32_t* ids, int64_t ld, int64_t k, int64_t i, int32_t* out) {
  int64_t n = 0;
  for (int64_t a = 0; a < k; ++a) {
    const int32_t j = ids[i * ld + a];
    if (j >= 0 && contains(ids + j * ld, k, static_cast<int32_t>(i))) out[n++] = j;
  }
  std::sort(out, out + n);
  return n;
}

int64_t shared(const int32_t* x, int64_t m, const int32_t* y, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0, j = 0; i < m && j < n;) {
    if (x[i] == y[j])
      ++count, ++i, ++j;
    else if (x[i] < y[j])
      ++i;
    else
      ++j;
  }
  return count;
}

float pair_distance(const RerankPairs& p, int64_t i, int64_t j) {
  if (p.from_blocks) return rerank_block_distance(p, i, j);
  if (i == j) return 0.0f;
  const float *x = rerank_item(p, i), *y = rerank_item(p, j);
  if (p.inverse_norm) {
    const double cosine = dot(x, y, p.dim) * p.inverse_norm[i] * p.inverse_norm[j];
    return std::max(0.0f, static_cast<float>(1.0 - cosine));
  }
  constexpr int64_t kChains = 32;
  float chain[kChains] = {}, sum = 0.0f;
  int64_t d = 0;
  for (; d + kChains <= p.dim; d += kChains)
    for (int64_t c = 0; c < kChains; ++c) {
      const float v = x[d + c] - y[d + c];
      chain[c] += v * v;
    }
  for (int64_t c = 0; c < kChains; ++c) sum += chain[c];
  for (; d < p.dim; ++d) sum += (x[d] - y[d]) * (x[d] - y[d]);
  return sum;
}

// Calls fn(position) for the set bits below n in ascending order and clears them.
template <typename Fn>
void drain(uint64_t* bits, int64_t n, const Fn& fn) {
  for (int64_t w = 0; w <= n / 64; ++w) {
    uint64_t word = bits[w];
    if (!word) continue;
    bits[w] = 0;
    for (; word; word &= word - 1) fn(w * 64 + __builtin_ctzll(word));
  }
}

}  // namespace

void rerank_offer_rows(const DistanceBlock& block, const NeighbourLists& lists, int64_t begin, int64_t end) {
  block.square ? offer_rows<true>(block, lists, begin, end) : offer_rows<false>(block, lists, begin, end);
}

void rerank_offer_columns(const DistanceBlock& block, const NeighbourLists& lists, int64_t begin, int64_t end) {
  block.square ? offer_columns<true>(block, lists, begin, end) : offer_columns<false>(block, lists, begin, end);
}

void rerank_half_sets(const int32_t* ids, int64_t k, int64_t k1_half, int64_t begin, int64_t end, int32_t* sets,
                      int32_t* sizes) {
  for (int64_t j = begin; j < end; ++j)
    sizes[j] = static_cast<int32_t>(reciprocal(ids, k, k1_half, j, sets + j * k1_half));
}

void rerank_set_row(const int32_t* ids, int64_t k, const int32_t* half_sets, const int32_t* half_sizes,
                    const RerankOptions& options, int64_t i, int32_t* columns, int64_t* size) {
  const int64_t own = reciprocal(ids, k, options.k1, i, columns);
  int64_t n = own;
  for (int64_t a = 0; a < own; ++a) {
    const int32_t* other = half_sets + columns[a] * options.k1_half;
    const int64_t count = half_sizes[columns[a]];
    if (rerank_joins(shared(other, count, columns, own), count)) n = std::copy_n(other, count, columns + n) - columns;
  }
  std::sort(columns + own, columns + n);
  std::inplace_merge(columns, columns + own, columns + n);
  *size = std::unique(columns, columns + n) - columns;
}

void rerank_weight_row(const int32_t* ids, const float* distances, const float* largest, int64_t k,
                       const RerankPairs& pairs, const RerankOptions& options, int64_t i, const int32_t* columns,
                       int64_t n, float* weights) {
  float least = INFINITY;
  for (int64_t e = 0; e < n; ++e) {
    const int32_t j = columns[e];
    float powered = -1.0f;
    bool listed = false;
    for (int64_t a = 0; a < k; ++a)
      if (ids[i * k + a] == j) powered = distances[i * k + a], listed = true;
    if (options.raw_weights) {  // of the base distance, never squared
      if (!listed || options.square) powered = pair_distance(pairs, i, j);
      weights[e] = options.raw_scale * powered;
    } else {
      if (!listed) powered = rerank_power(pair_distance(pairs, i, j), options.square);
      weights[e] = rerank_scaled(powered, largest[i]);
    }
    least = std::min(least, weights[e]);
  }
  if (!options.raw_weights) least = 0.0f;  // exp(-Dn) as it is; a softmax is taken relative to its best
  float sum = 0.0f;
  for (int64_t e = 0; e < n; ++e) sum += weights[e] = std::exp(least - weights[e]);
  for (int64_t e = 0; e < n; ++e) weights[e] /= sum;
  if (options.store_half)
    for (int64_t e = 0; e < n; ++e) weights[e] = half(weights[e]);
}

void rerank_expand_row(const int32_t* ids, int64_t k, const RerankRows& v, int64_t n, const RerankOptions& options,
                       int64_t i, float* sum, uint64_t* bits, int32_t* columns, float* values, int64_t* size) {
  int64_t lists = 0;
  for (int64_t a = 0; a < std::min(options.k2, k); ++a) {
    const int32_t j = ids[i * k + a];
    if (j < 0) continue;
    ++lists;
    for (int64_t e = v.indptr[j]; e < v.indptr[j + 1]; ++e) {
      const int32_t c = v.column[e];
      bits[c / 64] |= uint64_t(1) << (c % 64);
      sum[c] += v.value[e];
    }
  }
  int64_t at = 0;
  const float count = static_cast<float>(lists);
  drain(bits, n, [&](int64_t c) {
    columns[at] = static_cast<int32_t>(c);
    values[at] = options.store_half ? half(sum[c] / count) : sum[c] / count;
    sum[c] = 0.0f;
    ++at;
  });
  *size = at;
}

void rerank_jaccard_row(const RerankRows& v, const RerankRows& inverse, int64_t targets, bool store_half, int64_t i,
                        float* sum, uint64_t* bits, int32_t* columns, float* distances, int64_t* size) {
  const int64_t first = v.indptr[i], last = v.indptr[i + 1];
  int64_t additions = 0;
  for (int64_t e = first; e < last; ++e) additions += inverse.indptr[v.column[e] + 1] - inverse.indptr[v.column[e]];
  constexpr int64_t kAhead = 2;  // lists asked for before their turn: each begins elsewhere in memory
  // Where much is shared, reading all sums is cheaper than marking which were touched.
  const bool mark = additions * 8 < targets;
  for (int64_t e = first; e < last; ++e) {
    const float own = v.value[e];
    const int64_t f0 = inverse.indptr[v.column[e]], f1 = inverse.indptr[v.column[e] + 1];
    if (e + kAhead < last) {
      const int64_t ahead = inverse.indptr[v.column[e + kAhead]];
      __builtin_prefetch(inverse.column + ahead);
      __builtin_prefetch(inverse.value + ahead);
    }
    if (mark)
      for (int64_t f = f0; f < f1; ++f) bits[inverse.column[f] / 64] |= uint64_t(1) << (inverse.column[f] % 64);
    if (store_half)
      for (int64_t f = f0; f < f1; ++f) {
        float& total = sum[inverse.column[f]];
        total = half(total + std::min(own, inverse.value[f]));
      }
    else
      for (int64_t f = f0; f < f1; ++f) sum[inverse.column[f]] += std::min(own, inverse.value[f]);
  }
  int64_t n = 0;
  const auto keep = [&](int64_t j) {
    columns[n] = static_cast<int32_t>(j);
    distances[n] = sum[j];
    n += sum[j] > 0.0f;
    sum[j] = 0.0f;
  };
  if (mark)
    drain(bits, targets, keep);
  else
    for (int64_t j = 0; j < targets; ++j) keep(j);
  for (int64_t e = 0; e < n; ++e) {
    const float d = rerank_jaccard_distance(distances[e], store_half, half);
    distances[e] = std::max(d, 0.0f);
  }
  *size = n;
}

void rerank_pair(const float* x, const float* y, int64_t dim, bool product, double* result) {
  constexpr int64_t kChains = 16;
  double chain[kChains] = {};
  const auto term = [&](int64_t d, double sum) {
    const double a = x[d], b = y[d];
    return product ? sum + a * b : sum + (a - b) * (a - b);
  };
  int64_t d = 0;
  for (; d + kChains <= dim; d += kChains)
    for (int64_t c = 0; c < kChains; ++c) chain[c] = term(d + c, chain[c]);
  for (int64_t c = 0; d < dim; ++d, ++c) chain[c] = term(d, chain[c]);
  for (int64_t half = kChains / 2; half > 0; half /= 2)
    for (int64_t c = 0; c < half; ++c) chain[c] += chain[c + half];
  *result = chain[0];
}

void rerank_clamp(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] > 0.0f ? x[i] : 0.0f;
}

void rerank_final_row(float* d, int64_t n, int64_t g0, float largest, double lambda_, bool blend_raw,
                      const RerankOptions& options, const RerankRows& jaccard, int64_t first, int64_t last,
                      float* scratch) {
  const float lambda = static_cast<float>(lambda_);
  const float rest = options.store_half ? half(static_cast<float>(1.0 - lambda_)) : static_cast<float>(1.0 - lambda_);
  if (blend_raw) {
    for (int64_t c = 0; c < n; ++c) d[c] = d[c] * lambda;
  } else if (options.square) {
    for (int64_t c = 0; c < n; ++c) d[c] = rerank_scaled(d[c] * d[c], largest) * lambda;
  } else {
    for (int64_t c = 0; c < n; ++c) d[c] = rerank_scaled(d[c], largest) * lambda;
  }
  first = std::lower_bound(jaccard.column + first, jaccard.column + last, static_cast<int32_t>(g0)) - jaccard.column;
  last = std::lower_bound(jaccard.column + first, jaccard.column + last, static_cast<int32_t>(g0 + n)) - jaccard.column;
  for (int64_t e = first; e < last; ++e) {
    const float part = jaccard.value[e] * rest;
    scratch[e - first] = (options.store_half ? half(part) : part) + d[jaccard.column[e] - g0];
  }
  for (int64_t c = 0; c < n; ++c) d[c] = rest + d[c];
  for (int64_t e = first; e < last; ++e) d[jaccard.column[e] - g0] = scratch[e - first];
}

}  // namespace reidfast::cpu::REID_ISA
