// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/memory.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/cpu/vec.h"

namespace reidfast::cpu::REID_ISA {
namespace {

template <typename A>
using Vec = at::vec::Vectorized<A>;

template <typename A>
constexpr A kNone = -std::numeric_limits<A>::infinity();

constexpr int64_t kBlock = 32;  // columns whose maximum is compared with the k-th best before any is looked at alone

// y += a * x
template <typename T, typename A>
REID_HD void axpy(A a, const T* x, A* y, int64_t n) {
  constexpr int64_t w = kLanes<T>;
  int64_t d = 0;
  for (; d + w <= n; d += w) at::vec::fmadd(Vec<A>(a), load_acc(x + d), Vec<A>::loadu(y + d)).store(y + d);
  for (; d < n; ++d) y[d] += a * static_cast<A>(x[d]);
}

template <typename A>
REID_HD void scale_by(A a, A* y, int64_t n) {
  constexpr int64_t w = Vec<A>::size();
  int64_t d = 0;
  for (; d + w <= n; d += w) (Vec<A>::loadu(y + d) * Vec<A>(a)).store(y + d);
  for (; d < n; ++d) y[d] *= a;
}

// sum of w^2
template <typename T>
REID_HD acc_t<T> squared_norm(const T* x, int64_t n) {
  constexpr int64_t w = kLanes<T>;
  AccVec<T> s0(0), s1(0);
  int64_t d = 0;
  for (; d + 2 * w <= n; d += 2 * w) {
    const auto a = load_acc(x + d), b = load_acc(x + d + w);
    s0 = at::vec::fmadd(a, a, s0);
    s1 = at::vec::fmadd(b, b, s1);
  }
  for (; d + w <= n; d += w) s0 = at::vec::fmadd(load_acc(x + d), load_acc(x + d), s0);
  acc_t<T> sum = horizontal_sum(AccVec<T>(s0 + s1));
  for (; d < n; ++d) sum += static_cast<acc_t<T>>(x[d]) * static_cast<acc_t<T>>(x[d]);
  return sum;
}

// sum of (w - x)^2: exact for near duplicates, where |x|^2 + |w|^2 - 2 x.w cancels
template <typename T, typename A>
REID_HD A squared_distance(const T* row, const A* x, int64_t n) {
  constexpr int64_t w = kLanes<T>;
  Vec<A> s0(0), s1(0);
  int64_t d = 0;
  for (; d + 2 * w <= n; d += 2 * w) {
    const auto a = load_acc(row + d) - Vec<A>::loadu(x + d), b = load_acc(row + d + w) - Vec<A>::loadu(x + d + w);
    s0 = at::vec::fmadd(a, a, s0);
    s1 = at::vec::fmadd(b, b, s1);
  }
  for (; d + w <= n; d += w) {
    const auto a = load_acc(row + d) - Vec<A>::loadu(x + d);
    s0 = at::vec::fmadd(a, a, s0);
  }
  A sum = horizontal_sum(Vec<A>(s0 + s1));
  for (; d < n; ++d) {
    const A a = static_cast<A>(row[d]) - x[d];
    sum += a * a;
  }
  return sum;
}

template <typename T, typename A>
REID_HD A direct_logit(const T* row, const A* x, int64_t dim, MemoryMetric<A> metric) {
  if (metric.dot) return metric.scale * dot<T>(row, x, dim);
  return -metric.scale * squared_distance(row, x, dim);
}

// out += a * (row - x) (Euclidean) or a * row (dot)
template <typename T, typename A>
REID_HD void add_difference(A a, const T* row, const A* x, int64_t dim, bool dot, A* out) {
  constexpr int64_t w = kLanes<T>;
  int64_t d = 0;
  for (; d + w <= dim; d += w) {
    const auto r = dot ? load_acc(row + d) : load_acc(row + d) - Vec<A>::loadu(x + d);
    at::vec::fmadd(Vec<A>(a), r, Vec<A>::loadu(out + d)).store(out + d);
  }
  for (; d < dim; ++d) out[d] += a * (static_cast<A>(row[d]) - (dot ? A(0) : x[d]));
}

// The heap keeps the worst of the best at its root.
template <typename A>
struct WorstAtRoot {
  bool operator()(const MemoryCandidate<A>& a, const MemoryCandidate<A>& b) const { return a.better(b); }
};

// Puts c in the place of the root and lets it sink; k >= 1.
template <typename A>
REID_HD void replace_root(MemoryCandidate<A>* heap, int64_t k, MemoryCandidate<A> c) {
  int64_t i = 0;
  for (int64_t child = 1; child < k; child = 2 * i + 1) {
    if (child + 1 < k && heap[child].better(heap[child + 1])) ++child;
    if (!c.better(heap[child])) break;
    heap[i] = heap[child];
    i = child;
  }
  heap[i] = c;
}

template <typename A>
REID_HD A max_of(const A* v, int64_t n) {  // n is a multiple of kBlock; NaN wins
  Vec<A> top(kNone<A>);
  for (int64_t j = 0; j < n; j += Vec<A>::size()) top = at::vec::maximum(top, Vec<A>::loadu(v + j));
  __at_align__ A lane[Vec<A>::size()];
  top.store(lane);
  A best = lane[0];
  for (int64_t j = 1; j < Vec<A>::size(); ++j) best = !(lane[j] <= best) ? lane[j] : best;
  return best;
}

}  // namespace

template <typename T, typename A>
void memory_load_tile(const T* rows, int64_t stride, int64_t count, int64_t width, int64_t dim, MemoryMetric<A> metric,
                      A* tile, A* offsets) {
  for (int64_t j = 0; j < count; ++j) {
    const T* row = rows + j * stride;
    if (offsets) offsets[j] = metric.offset(squared_norm(row, dim));
    if (!tile) continue;
    int64_t d = 0;
    for (; d + kLanes<T> <= dim; d += kLanes<T>) load_acc(row + d).store(tile + j * dim + d);
    for (; d < dim; ++d) tile[j * dim + d] = static_cast<A>(row[d]);
  }
  if (offsets) std::fill(offsets + count, offsets + width, A(0));
  if (tile) std::fill(tile + count * dim, tile + width * dim, A(0));
}

template <typename T, typename A>
void memory_small_products(const MemoryTile<T, A>& tile, const A* x, int64_t count, A* products) {
  for (int64_t q = 0; q < count; ++q) {
    A* out = products + q * tile.width;
    for (int64_t j = 0; j < tile.count; ++j)
      out[j] = dot<T>(tile.bank + (tile.first + j) * tile.stride, x + q * tile.dim, tile.dim);
    std::fill(out + tile.count, out + tile.width, A(0));
  }
}

template <typename T, typename A>
void memory_small_rows(const MemoryTile<T, A>& tile, const A* products, int64_t count, A* sum) {
  for (int64_t q = 0; q < count; ++q)
    for (int64_t j = 0; j < tile.count; ++j)
      axpy(products[q * tile.width + j], tile.bank + (tile.first + j) * tile.stride, sum + q * tile.dim, tile.dim);
}

template <typename T, typename A>
void memory_select(const MemoryTile<T, A>& tile, const MemoryQueries<A>& queries, MemoryMetric<A> metric, A* products) {
  using V = Vec<A>;
  constexpr int64_t w = V::size();
  const V slope(metric.slope());
  const int64_t k = queries.k;
  for (int64_t q = 0; q < queries.count; ++q) {
    A* logit = products + q * tile.width;
    for (int64_t j = 0; j < tile.width; j += w) {
      const V offset = tile.offsets ? V::loadu(tile.offsets + j) : V(0);
      at::vec::fmadd(slope, V::loadu(logit + j), offset).store(logit + j);
    }
    std::fill(logit + tile.count, logit + tile.width, kNone<A>);
    const int64_t skip = queries.exclude ? queries.exclude[q] - tile.first : -1;
    if (skip >= 0 && skip < tile.count) logit[skip] = kNone<A>;
    if (queries.targets) {
      const int64_t target = queries.targets[q] - tile.first;
      if (target >= 0 && target < tile.count) logit[target] = kNone<A>;
    }

    // The k best leave the tile; a row of this tile that they push out comes back, one of an earlier tile is added
    // below.
    MemoryCandidate<A>* best = queries.best + q * k;
    int64_t filled = k ? queries.filled[q] : 0;
    A rest_max = queries.rest_max[q], pushed_out_max = kNone<A>;
    A* rest_rows = queries.rest_rows ? queries.rest_rows + q * tile.dim : nullptr;
    double sum = queries.rest_sum[q];
    MemoryCandidate<A> pushed_out[kBlock];
    int64_t num_pushed_out = 0;
    const auto rebase = [&](A top) {  // sums relative to `top`
      if (!(top > rest_max)) return;
      const A factor = std::exp(rest_max - top);
      if (factor != A(1)) {
        sum *= static_cast<double>(factor);
        if (rest_rows) scale_by(factor, rest_rows, tile.dim);
      }
      rest_max = top;
    };
    const auto add_pushed_out = [&] {
      rebase(pushed_out_max);
      for (int64_t i = 0; i < num_pushed_out; ++i) {
        const A e = pushed_out[i].logit == kNone<A> ? A(0) : std::exp(pushed_out[i].logit - rest_max);
        sum += static_cast<double>(e);
        if (rest_rows) axpy(e, tile.bank + pushed_out[i].row * tile.stride, rest_rows, tile.dim);
      }
      num_pushed_out = 0;
      pushed_out_max = kNone<A>;
    };
    for (int64_t block = 0; k && block < tile.count; block += kBlock) {
      if (filled == k && max_of(logit + block, kBlock) <= best[0].logit) continue;
      const int64_t end = std::min(block + kBlock, tile.count);
      for (int64_t j = block; j < end; ++j) {
        if (j == skip || std::isnan(logit[j])) continue;
        const MemoryCandidate<A> c{logit[j], tile.first + j};
        if (filled < k) {
          best[filled++] = c;
          if (filled == k) std::make_heap(best, best + k, WorstAtRoot<A>{});
          logit[j] = kNone<A>;
        } else if (c.logit > best[0].logit) {
          const MemoryCandidate<A> out = best[0];
          replace_root(best, k, c);
          logit[j] = kNone<A>;
          if (out.row >= tile.first) {
            logit[out.row - tile.first] = out.logit;
          } else {
            if (num_pushed_out == kBlock) add_pushed_out();
            pushed_out[num_pushed_out++] = out;
            pushed_out_max = std::max(pushed_out_max, out.logit);
          }
        }
      }
    }
    add_pushed_out();

    rebase(max_of(logit, tile.width));  // a NaN leaves rest_max as it is and makes the sum NaN
    const V top(rest_max == kNone<A> ? A(0) : rest_max);
    V s0(0), s1(0);
    for (int64_t j = 0; j < tile.width; j += 2 * w) {
      const V a = (V::loadu(logit + j) - top).exp(), b = (V::loadu(logit + j + w) - top).exp();
      a.store(logit + j);
      b.store(logit + j + w);
      s0 = s0 + a;
      s1 = s1 + b;
    }
    queries.rest_max[q] = rest_max;
    queries.rest_sum[q] = sum + static_cast<double>(horizontal_sum(V(s0 + s1)));
    if (k) queries.filled[q] = filled;
  }
}

template <typename T, typename A>
void memory_finish(const T* bank, int64_t stride, int64_t dim, const A* x, const int64_t* targets,
                   MemoryMetric<A> metric, const MemoryPartials<A>& partials, int64_t begin, int64_t end,
                   const MemoryOutputs<A>& out) {
  const int64_t k = partials.k;
  for (int64_t q = begin; q < end; ++q) {
    const A* query = x + q * dim;
    // The k best of all chunks gather in the slots of chunk 0, the others in the slots of the later chunks.
    MemoryCandidate<A> target{A(0), targets ? targets[q] : 0};
    MemoryCandidate<A>* best = targets ? &target : partials.best + q * k;
    int64_t num_best = targets ? 1 : partials.filled[q];
    A rest_max = partials.rest_max[q];
    for (int64_t c = 1; c < partials.chunks; ++c) {
      const int64_t at = c * partials.queries + q;
      rest_max = std::max(rest_max, partials.rest_max[at]);
      int64_t left = 0;
      MemoryCandidate<A>* others = partials.best + at * k;
      for (int64_t i = 0; i < (targets ? 0 : partials.filled[at]); ++i) {
        MemoryCandidate<A> loser = others[i];
        if (num_best < k) {
          best[num_best++] = loser;
          if (num_best == k) std::make_heap(best, best + k, WorstAtRoot<A>{});
          continue;
        }
        if (loser.better(best[0])) {
          loser = best[0];
          replace_root(best, k, others[i]);
        }
        rest_max = std::max(rest_max, loser.logit);
        others[left++] = loser;
      }
      if (!targets) partials.filled[at] = left;
    }

    // The rest, relative to its maximum; its rows end in chunk 0.
    const A base = rest_max == kNone<A> ? A(0) : rest_max;
    A* rest_rows = out.direction ? partials.rest_rows + q * dim : nullptr;
    double sum = 0;
    for (int64_t c = 0; c < partials.chunks; ++c) {
      const int64_t at = c * partials.queries + q;
      const A factor = std::exp(partials.rest_max[at] - base);
      sum += partials.rest_sum[at] * static_cast<double>(factor);
      if (rest_rows && c == 0) scale_by(factor, rest_rows, dim);
      if (rest_rows && c > 0) axpy(factor, partials.rest_rows + at * dim, rest_rows, dim);
      if (c == 0 || targets) continue;
      for (int64_t i = 0; i < partials.filled[at]; ++i) {
        const MemoryCandidate<A>& loser = partials.best[at * k + i];
        const A e = std::exp(loser.logit - base);
        sum += static_cast<double>(e);
        if (rest_rows) axpy(e, bank + loser.row * stride, rest_rows, dim);
      }
    }

    // The best, anew from the rows themselves.
    A best_max = kNone<A>;
    for (int64_t i = 0; i < num_best; ++i) {
      best[i].logit = direct_logit(bank + best[i].row * stride, query, dim, metric);
      best_max = std::max(best_max, best[i].logit);
    }
    std::sort(best, best + num_best, WorstAtRoot<A>{});
    double best_sum = 0;
    for (int64_t i = 0; i < num_best; ++i) best_sum += std::exp(static_cast<double>(best[i].logit - best_max));
    const double lse_best = static_cast<double>(best_max) + std::log(best_sum);
    double query_offset = 0;
    for (int64_t d = 0; !metric.dot && d < dim; ++d)
      query_offset -= static_cast<double>(query[d]) * static_cast<double>(query[d]);
    query_offset *= static_cast<double>(metric.scale);
    const double gap =
        (query_offset + static_cast<double>(base) + std::log(sum)) - lse_best;  // sum 0: -inf, nothing but the best
    const double share = sigmoid(gap);
    if (out.loss) out.loss[q] = static_cast<A>(softplus(gap));
    if (out.lse) out.lse[q] = static_cast<A>(lse_best + softplus(gap));
    if (out.state) out.state[q] = lse_best + softplus(gap) - query_offset;
    for (int64_t i = 0; out.shares && i < k; ++i)
      out.shares[q * k + i] =
          i < num_best ? std::exp(static_cast<double>(best[i].logit) - lse_best - softplus(gap)) : 0.0;
    for (int64_t i = 0; out.topk && i < k; ++i) {
      out.topk[q * k + i] = i < num_best ? best[i].row : -1;
      out.topk_logits[q * k + i] = i < num_best ? best[i].logit : std::numeric_limits<A>::quiet_NaN();
    }
    if (!out.direction) continue;
    // loss: share * (mean of the rest - mean of the best); lse: share * mean of the rest + (1 - share) * mean of the
    // best
    A* direction = out.direction + q * dim;
    const double slope = static_cast<double>(metric.slope());
    const A rest_weight = static_cast<A>(slope * share);
    const A best_weight = static_cast<A>(out.loss ? -slope * share : slope * sigmoid(-gap));
    const A inverse = sum == 0 ? A(0) : static_cast<A>(1 / sum);
    for (int64_t d = 0; d < dim; ++d)
      direction[d] = rest_weight * (rest_rows[d] * inverse - (metric.dot || sum == 0 ? A(0) : query[d]));
    for (int64_t i = 0; i < num_best; ++i) {
      const A weight = best_weight * static_cast<A>(std::exp(static_cast<double>(best[i].logit - best_max)) / best_sum);
      add_difference(weight, bank + best[i].row * stride, query, dim, metric.dot, direction);
    }
  }
}

template <typename T, typename A>
void memory_grad_x(const T* bank, int64_t stride, int64_t dim, const A* x, const A* grad_lse, const A* direction,
                   const MemoryPicks<A>& picks, MemoryMetric<A> metric, int64_t begin, int64_t end, A* grad_x) {
  for (int64_t q = begin; q < end; ++q) {
    for (int64_t d = 0; d < dim; ++d) grad_x[q * dim + d] = grad_lse[q] * direction[q * dim + d];
    for (int64_t i = 0; i < picks.k; ++i) {
      const int64_t row = picks.rows[q * picks.k + i];
      const A weight = metric.slope() * picks.weights[q * picks.k + i];
      if (row >= 0 && weight != A(0))
        add_difference(weight, bank + row * stride, x + q * dim, dim, metric.dot, grad_x + q * dim);
    }
  }
}

template <typename T, typename A>
void memory_weights(const MemoryTile<T, A>& tile, int64_t queries, const int64_t* exclude, const A* grad_lse,
                    const double* state, const MemoryPicks<A>& picks, MemoryMetric<A> metric, A* products, A* sums) {
  using V = Vec<A>;
  const V slope(metric.slope());
  for (int64_t q = 0; q < queries; ++q) {
    A* weight = products + q * tile.width;
    const A nearest = static_cast<A>(state[q]);
    const V base(nearest), grad(grad_lse[q] * static_cast<A>(std::exp(static_cast<double>(nearest) - state[q])));
    for (int64_t j = 0; j < tile.width; j += V::size()) {  // the logits in the forward's own bits
      const V offset = tile.offsets ? V::loadu(tile.offsets + j) : V(0);
      ((at::vec::fmadd(slope, V::loadu(weight + j), offset) - base).exp() * grad).store(weight + j);
    }
    std::fill(weight + tile.count, weight + tile.width, A(0));
    const int64_t skip = exclude ? exclude[q] - tile.first : -1;
    if (skip >= 0 && skip < tile.count) weight[skip] = A(0);
    for (int64_t i = 0; i < picks.k; ++i) {
      const int64_t j = picks.rows[q * picks.k + i] - tile.first;
      if (j < 0 || j >= tile.count || picks.rows[q * picks.k + i] < 0) continue;
      weight[j] = picks.replace ? picks.weights[q * picks.k + i] : weight[j] + picks.weights[q * picks.k + i];
    }
    for (int64_t j = 0; j < tile.width; j += V::size()) (V::loadu(sums + j) + V::loadu(weight + j)).store(sums + j);
  }
}

template <typename T, typename A>
void memory_grad_rows(const MemoryTile<T, A>& tile, const A* weighted, const A* sums, MemoryMetric<A> metric, T* grad) {
  const A slope = metric.slope();
  for (int64_t j = 0; j < tile.count; ++j) {
    const T* row = tile.bank + (tile.first + j) * tile.stride;
    for (int64_t d = 0; d < tile.dim; ++d) {
      const A w = weighted[j * tile.dim + d];
      grad[j * tile.dim + d] = static_cast<T>(slope * (metric.dot ? w : w - sums[j] * static_cast<A>(row[d])));
    }
  }
}

#define INSTANTIATE_AS(T, A)                                                                                         \
  template void memory_load_tile<T, A>(const T*, int64_t, int64_t, int64_t, int64_t, MemoryMetric<A>, A*, A*);       \
  template void memory_small_products<T, A>(const MemoryTile<T, A>&, const A*, int64_t, A*);                         \
  template void memory_small_rows<T, A>(const MemoryTile<T, A>&, const A*, int64_t, A*);                             \
  template void memory_select<T, A>(const MemoryTile<T, A>&, const MemoryQueries<A>&, MemoryMetric<A>, A*);          \
  template void memory_finish<T, A>(const T*, int64_t, int64_t, const A*, const int64_t*, MemoryMetric<A>,           \
                                    const MemoryPartials<A>&, int64_t, int64_t, const MemoryOutputs<A>&);            \
  template void memory_grad_x<T, A>(const T*, int64_t, int64_t, const A*, const A*, const A*, const MemoryPicks<A>&, \
                                    MemoryMetric<A>, int64_t, int64_t, A*);                                          \
  template void memory_weights<T, A>(const MemoryTile<T, A>&, int64_t, const int64_t*, const A*, const double*,      \
                                     const MemoryPicks<A>&, MemoryMetric<A>, A*, A*);                                \
  template void memory_grad_rows<T, A>(const MemoryTile<T, A>&, const A*, const A*, MemoryMetric<A>, T*);
#define INSTANTIATE(T) INSTANTIATE_AS(T, acc_t<T>)
REID_FOR_EACH_FLOAT(INSTANTIATE)

}  // namespace reidfast::cpu::REID_ISA
