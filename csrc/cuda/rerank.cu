// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The sets of k-reciprocal re-ranking. An item is a warp's (neighbourhoods, weights) or a block's (expansion, Jaccard
// distances); lists live in shared memory, sorted there. Sums are taken in the order of the CPU's code (csrc/cpu/
// rerank.cpp): over neighbours for the expansion, over the items of a row for the Jaccard distances, where the entries
// of one inverted list go to different targets and need no atomics.
#include <algorithm>

#include "csrc/cuda/device.h"
#include "csrc/cuda/rerank.h"

namespace reidfast::cuda {
namespace {

constexpr int kWarps = 4;  // items of a block where an item is a warp's
constexpr int kThreads = 128;
constexpr int kPart = 64 * kThreads;  // columns of a block of final_kernel
constexpr int kJaccardThreads = 256;
constexpr int64_t kJaccardBytes = 256 << 20;  // of scratch, at most
constexpr int64_t kJaccardBlocks = 2 * 132;
constexpr int32_t kNobody = 0x7fffffff;

__device__ __forceinline__ float as_half(float x) { return __half2float(__float2half_rn(x)); }

int64_t power_of_two(int64_t n) {
  int64_t p = 32;
  while (p < n) p *= 2;
  return p;
}

// Ascending, by `threads` threads of which this is number `thread`; n a power of two. sync() makes them wait for each
// other.
template <typename T, typename Sync>
__device__ __forceinline__ void bitonic_sort(T* x, int n, int thread, int threads, const Sync& sync) {
  for (int size = 2; size <= n; size *= 2)
    for (int step = size / 2; step > 0; step /= 2) {
      sync();
      for (int i = thread; i < n / 2; i += threads) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const bool up = (low & size) == 0;
        if ((x[low] > x[high]) == up) {
          const T t = x[low];
          x[low] = x[high];
          x[high] = t;
        }
      }
    }
  sync();
}

struct WarpSync {
  __device__ __forceinline__ void operator()() const { __syncwarp(); }
};
struct BlockSync {
  __device__ __forceinline__ void operator()() const { __syncthreads(); }
};

__device__ __forceinline__ int next_power(int n) {
  int p = 2;
  while (p < n) p *= 2;
  return p;
}

// By a warp: those of the first k of list i that have i among their own first k, ascending in out; how many. out has
// room for the next power of two, 32 at least.
__device__ __forceinline__ int reciprocal(const int32_t* ids, int64_t ld, int k, int64_t i, int32_t* out) {
  const int lane = threadIdx.x % 32;
  int n = 0;
  for (int a = 0; a < k; a += 32) {
    const int32_t j = a + lane < k ? ids[i * ld + a + lane] : -1;
    bool mutual = false;
    if (j >= 0)
      for (int b = 0; b < k; ++b) mutual |= ids[j * ld + b] == static_cast<int32_t>(i);
    const unsigned votes = __ballot_sync(kAllLanes, mutual);
    if (mutual) out[n + __popc(votes & ((1u << lane) - 1))] = j;
    n += __popc(votes);
  }
  __syncwarp();
  if (n <= 32) {  // no id stands twice: an id's place is the number of smaller ones
    const int32_t own = lane < n ? out[lane] : kNobody;
    int place = 0;
    for (int b = 0; b < n; ++b) place += out[b] < own;
    __syncwarp();
    if (lane < n) out[place] = own;
    __syncwarp();
  } else {
    const int padded = next_power(n);
    for (int a = n + lane; a < padded; a += 32) out[a] = kNobody;
    bitonic_sort(out, padded, lane, 32, WarpSync());
  }
  return n;
}

// The first of [begin, end) that is not below `bound`.
__device__ __forceinline__ int64_t lower_bound(const int32_t* x, int64_t begin, int64_t end, int64_t bound) {
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (x[middle] < bound)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

__device__ __forceinline__ bool contains(const int32_t* x, int n, int32_t id) {
  const int64_t place = lower_bound(x, 0, n, id);
  return place < n && x[place] == id;
}

// By a warp, for all its lanes: x.y, or |x - y|^2, in double.
__device__ __forceinline__ double warp_double(const float* x, const float* y, int64_t dim, bool product) {
  double sum = 0.0;
#pragma unroll 4
  for (int64_t d = threadIdx.x % 32; d < dim; d += 32) {
    const double a = x[d], b = y[d];
    sum += product ? a * b : (a - b) * (a - b);
  }
  return warp_sum(sum);
}

// A warp per item.
__global__ void __launch_bounds__(kThreads)
    norms_kernel(RerankPairs pairs, double* __restrict__ norm, double* __restrict__ inverse_norm) {
  const int64_t i = blockIdx.x * int64_t(kWarps) + threadIdx.x / 32;
  if (i >= pairs.queries + pairs.galleries) return;  // the whole warp
  const float* x = rerank_item(pairs, i);
  const double length = sqrt(warp_double(x, x, pairs.dim, /*product=*/true));
  if (threadIdx.x % 32 != 0) return;
  if (norm) norm[i] = length;
  if (inverse_norm) inverse_norm[i] = length > 0.0 ? 1.0 / length : 0.0;
}

// A warp per item; its list stands in shared memory.
__global__ void __launch_bounds__(kThreads)
    resolve_ties_kernel(RerankLists lists, RerankPairs pairs, const double* __restrict__ norm, int64_t keep,
                        bool cosine, bool square, int32_t* __restrict__ ids, float* __restrict__ distances) {
  REID_DYNAMIC_SHARED(double, shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, k = static_cast<int>(lists.k);
  double* exact = shared + static_cast<int64_t>(warp) * 2 * k;
  float* d = reinterpret_cast<float*>(exact + k);
  int32_t* id = reinterpret_cast<int32_t*>(d + k);
  const int64_t i = blockIdx.x * int64_t(kWarps) + warp;
  if (i >= lists.n) return;  // the whole warp
  for (int a = lane; a < k; a += 32) d[a] = lists.distance[i * k + a], id[a] = lists.id[i * k + a];
  __syncwarp();
  const auto base = [&](int a) { return square ? sqrt(static_cast<double>(d[a])) : static_cast<double>(d[a]); };
  for (int a = 0; a < keep;) {
    int b = a + 1;
    if (id[a] >= 0 && id[a] != i) {
      for (; b < k && id[b] >= 0; ++b) {
        const double farther = max(norm[id[b - 1]], norm[id[b]]);
        const double scale = cosine ? 2.0 : norm[i] * norm[i] + farther * farther;
        if (!(base(b) - base(b - 1) <= kRerankRounding * scale)) break;
      }
    }
    if (b - a > 1) {
      for (int c = a; c < b; ++c) {
        double value = warp_double(rerank_item(pairs, i), rerank_item(pairs, id[c]), pairs.dim, cosine);
        if (cosine) {
          const double norms = norm[i] * norm[id[c]];
          value = norms > 0.0 ? max(0.0, 1.0 - value / norms) : 1.0;
        }
        if (lane == 0) exact[c] = value;
      }
      __syncwarp();
      for (int c = a + lane; c < b; c += 32) {
        int place = a;
        for (int e = a; e < b; ++e) place += exact[e] < exact[c] || (exact[e] == exact[c] && id[e] < id[c]);
        if (place >= keep) continue;
        const float value = static_cast<float>(exact[c]);
        ids[i * keep + place] = id[c];
        distances[i * keep + place] = square ? value * value : value;
      }
    } else if (lane == 0) {
      ids[i * keep + a] = id[a];
      distances[i * keep + a] = d[a];
    }
    a = b;
  }
}

__global__ void __launch_bounds__(kThreads) half_sets_kernel(RerankLists lists, int k1_half, int room,
                                                             int32_t* __restrict__ sets, int32_t* __restrict__ sizes) {
  REID_DYNAMIC_SHARED(int32_t, shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int32_t* own = shared + warp * room;
  const int64_t j = blockIdx.x * int64_t(kWarps) + warp;
  if (j >= lists.n) return;  // the whole warp
  const int n = reciprocal(lists.id, lists.k, k1_half, j, own);
  for (int a = lane; a < n; a += 32) sets[j * k1_half + a] = own[a];
  if (lane == 0) sizes[j] = n;
}

__global__ void __launch_bounds__(kThreads)
    sets_kernel(RerankLists lists, const int32_t* __restrict__ half_sets, const int32_t* __restrict__ half_sizes,
                RerankOptions options, int room, int64_t* __restrict__ sizes, const int64_t* __restrict__ indptr,
                int32_t* __restrict__ columns) {
  REID_DYNAMIC_SHARED(int32_t, shared);
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int32_t* all = shared + warp * room;
  const int64_t i = blockIdx.x * int64_t(warps) + warp;
  if (i >= lists.n) return;  // the whole warp
  const int own = reciprocal(lists.id, lists.k, static_cast<int>(options.k1), i, all);
  int n = own;
  for (int a = 0; a < own; ++a) {
    const int64_t j = all[a];
    const int32_t* other = half_sets + j * options.k1_half;
    const int size = half_sizes[j];
    int shared_items = 0;
    for (int b = lane; b < size; b += 32) shared_items += contains(all, own, other[b]);
    shared_items = warp_count(shared_items);
    if (!rerank_joins(shared_items, size)) continue;
    for (int b = lane; b < size; b += 32) all[n + b] = other[b];
    n += size;
  }
  __syncwarp();
  if (n > own) {
    const int padded = next_power(n);
    for (int b = n + lane; b < padded; b += 32) all[b] = kNobody;
    bitonic_sort(all, padded, lane, 32, WarpSync());
  }
  int kept = 0;
  for (int b = 0; b < n; b += 32) {
    const int at = b + lane;
    const bool first = at < n && (at == 0 || all[at] != all[at - 1]);
    const unsigned votes = __ballot_sync(kAllLanes, first);
    if (first && indptr) columns[indptr[i] + kept + __popc(votes & ((1u << lane) - 1))] = all[at];
    kept += __popc(votes);
  }
  if (!indptr && lane == 0) sizes[i] = kept;
}

// By a warp, for all its lanes.
__device__ __forceinline__ float pair_distance(const RerankPairs& p, int64_t i, int64_t j) {
  if (p.from_blocks) return rerank_block_distance(p, i, j);
  if (i == j) return 0.0f;
  const float *x = rerank_item(p, i), *y = rerank_item(p, j);
  if (p.inverse_norm) {
    double sum = 0.0;
    for (int64_t d = threadIdx.x % 32; d < p.dim; d += 32) sum += static_cast<double>(x[d]) * y[d];
    return max(0.0f, static_cast<float>(1.0 - warp_sum(sum) * p.inverse_norm[i] * p.inverse_norm[j]));
  }
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t d = threadIdx.x % 32; d < p.dim; d += 32) {
    const float v = x[d] - y[d];
    sum += v * v;
  }
  return warp_sum(sum);
}

__global__ void __launch_bounds__(kThreads)
    weights_kernel(RerankLists lists, RerankPairs pairs, RerankOptions options, const int64_t* __restrict__ indptr,
                   const int32_t* __restrict__ columns, float* __restrict__ weights) {
  const int lane = threadIdx.x % 32;
  const int64_t i = blockIdx.x * int64_t(kWarps) + threadIdx.x / 32;
  if (i >= lists.n) return;  // the whole warp
  const int64_t first = indptr[i], last = indptr[i + 1];
  const float largest = lists.largest[i];
  float least = INFINITY;
  for (int64_t e = first; e < last; ++e) {
    const int32_t j = columns[e];
    float powered = 0.0f;
    bool listed = false;
    for (int64_t a = 0; a < lists.k && !listed; a += 32) {
      const bool match = a + lane < lists.k && lists.id[i * lists.k + a + lane] == j;
      const unsigned votes = __ballot_sync(kAllLanes, match);
      if (votes) listed = true, powered = lists.distance[i * lists.k + a + __ffs(votes) - 1];
    }
    float weight;
    if (options.raw_weights) {  // of the base distance, never squared
      if (!listed || options.square) powered = pair_distance(pairs, i, j);
      weight = options.raw_scale * powered;
    } else {
      if (!listed) powered = rerank_power(pair_distance(pairs, i, j), options.square);
      weight = rerank_scaled(powered, largest);
    }
    least = min(least, weight);
    if (lane == 0) weights[e] = weight;
  }
  __syncwarp();
  if (!options.raw_weights) least = 0.0f;  // exp(-Dn) as it is; a softmax is taken relative to its best
  float sum = 0.0f;
  for (int64_t e = first + lane; e < last; e += 32) sum += weights[e] = expf(least - weights[e]);
  sum = warp_sum(sum);
  for (int64_t e = first + lane; e < last; e += 32) {
    const float weight = weights[e] / sum;
    weights[e] = options.store_half ? as_half(weight) : weight;
  }
}

// Exclusive prefix sum of one number per thread over a block of whole warps, and the sum of all; scratch: one element
// per warp.
__device__ __forceinline__ int block_prefix(int x, int* scratch, int* total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int inclusive = x;
#pragma unroll
  for (int m = 1; m < 32; m *= 2) {
    const int below = __shfl_up_sync(kAllLanes, inclusive, m);
    if (lane >= m) inclusive += below;
  }
  if (lane == 31) scratch[warp] = inclusive;
  __syncthreads();
  int before = 0, all = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x / 32); ++w) {
    before += w < warp ? scratch[w] : 0;
    all += scratch[w];
  }
  __syncthreads();
  *total = all;
  return before + inclusive - x;
}

// One block per item. The entries of its neighbours' rows are sorted by (column, neighbour), then each run of one
// column is added up by one thread, in the order of the neighbours.
__global__ void __launch_bounds__(kThreads)
    expand_kernel(RerankLists lists, RerankRows v, RerankOptions options, int room, int64_t* __restrict__ sizes,
                  const int64_t* __restrict__ indptr, int32_t* __restrict__ columns, float* __restrict__ values) {
  REID_DYNAMIC_SHARED(unsigned long long, key);  // [room], then float value [room]
  float* value = reinterpret_cast<float*>(key + room);
  __shared__ int scratch[kThreads / 32];
  const int64_t i = blockIdx.x;
  const int k2 = static_cast<int>(min(options.k2, lists.k));
  int n = 0, neighbours = 0;
  for (int a = 0; a < k2; ++a) {
    const int64_t j = lists.id[i * lists.k + a];
    if (j < 0) continue;
    ++neighbours;
    const int64_t first = v.indptr[j];
    const int size = static_cast<int>(v.indptr[j + 1] - first);
    for (int e = threadIdx.x; e < size; e += kThreads) {
      const auto column = static_cast<unsigned long long>(v.column[first + e]);
      key[n + e] = column << 32 | static_cast<unsigned long long>(n + e);
      value[n + e] = v.value[first + e];
    }
    n += size;
  }
  const int padded = next_power(n);
  for (int e = n + threadIdx.x; e < padded; e += kThreads) key[e] = ~0ull;
  bitonic_sort(key, padded, threadIdx.x, kThreads, BlockSync());
  int64_t at = indptr ? indptr[i] : 0;
  int kept = 0;
  const float count = static_cast<float>(neighbours);
  for (int begin = 0; begin < n; begin += kThreads) {
    const int e = begin + static_cast<int>(threadIdx.x);
    const bool first = e < n && (e == 0 || key[e] >> 32 != key[e - 1] >> 32);
    int total;
    const int place = block_prefix(first, scratch, &total);
    if (first && indptr) {
      const unsigned long long column = key[e] >> 32;
      float sum = 0.0f;
      for (int f = e; f < n && key[f] >> 32 == column; ++f) sum += value[key[f] & 0xffffffffull];
      columns[at + kept + place] = static_cast<int32_t>(column);
      values[at + kept + place] = options.store_half ? as_half(sum / count) : sum / count;
    }
    kept += total;
  }
  if (!indptr && threadIdx.x == 0) sizes[i] = kept;
}

// A block takes row after row. sum [targets] and bits [targets / 32 + 1] are its own, in global memory.
__global__ void __launch_bounds__(kJaccardThreads)
    jaccard_kernel(RerankRows v, RerankRows inverse, int64_t rows, int64_t targets, bool store_half,
                   float* __restrict__ sums, unsigned* __restrict__ marks, int64_t* __restrict__ sizes,
                   const int64_t* __restrict__ indptr, int32_t* __restrict__ columns, float* __restrict__ distances) {
  __shared__ int scratch[kJaccardThreads / 32];
  const int64_t words = targets / 32 + 1;
  float* sum = sums + blockIdx.x * targets;
  unsigned* bits = marks + blockIdx.x * words;
  for (int64_t i = blockIdx.x; i < rows; i += gridDim.x) {
    for (int64_t e = v.indptr[i]; e < v.indptr[i + 1]; ++e) {
      const int32_t c = v.column[e];
      const float own = v.value[e];
      for (int64_t f = inverse.indptr[c] + threadIdx.x; f < inverse.indptr[c + 1]; f += kJaccardThreads) {
        const int32_t j = inverse.column[f];
        const unsigned bit = 1u << (j % 32);
        if (!(bits[j / 32] & bit)) atomicOr(bits + j / 32, bit);
        if (!indptr) continue;
        const float total = sum[j] + min(own, inverse.value[f]);
        sum[j] = store_half ? as_half(total) : total;
      }
      __syncthreads();  // the next list may hold the same targets
    }
    int64_t at = indptr ? indptr[i] : 0;
    for (int64_t begin = 0; begin < words; begin += kJaccardThreads) {
      const int64_t w = begin + threadIdx.x;
      unsigned word = w < words ? bits[w] : 0;
      int total;
      int64_t place = at + block_prefix(__popc(word), scratch, &total);
      if (word) bits[w] = 0;
      for (; word && indptr; word &= word - 1) {
        const int64_t j = w * 32 + __ffs(static_cast<int>(word)) - 1;
        const float d = rerank_jaccard_distance(sum[j], store_half, [](float x) { return as_half(x); });
        sum[j] = 0.0f;
        columns[place] = static_cast<int32_t>(j);
        distances[place++] = max(d, 0.0f);
      }
      at += total;
    }
    if (!indptr && threadIdx.x == 0) sizes[i] = at;
    __syncthreads();
  }
}

__device__ __forceinline__ float original_part(float d, float largest, float lambda, bool blend_raw, bool square) {
  return __fmul_rn(blend_raw ? d : rerank_scaled(rerank_power(d, square), largest), lambda);
}

// A block takes kPart columns of a row: all of them as if nothing were shared, but the entries of the sparse row among
// them, which are worked out first, while their base distances stand.
__global__ void __launch_bounds__(kThreads)
    final_kernel(float* __restrict__ d, int64_t n, const float* __restrict__ largest, float lambda, float rest,
                 bool blend_raw, RerankOptions options, RerankRows jaccard) {
  __shared__ float entry[kPart];
  const int64_t q = blockIdx.y, begin = blockIdx.x * int64_t(kPart), end = min(begin + kPart, n);
  float* row = d + q * n;
  const float top = largest[q];
  const int64_t first = lower_bound(jaccard.column, jaccard.indptr[q], jaccard.indptr[q + 1], begin);
  const int64_t last = lower_bound(jaccard.column, first, jaccard.indptr[q + 1], end);
  for (int64_t e = first + threadIdx.x; e < last; e += kThreads) {
    const float part = __fmul_rn(jaccard.value[e], rest);
    entry[e - first] = (options.store_half ? as_half(part) : part) +
                       original_part(row[jaccard.column[e]], top, lambda, blend_raw, options.square);
  }
  __syncthreads();
  for (int64_t c = begin + threadIdx.x; c < end; c += kThreads)
    row[c] = rest + original_part(row[c], top, lambda, blend_raw, options.square);
  __syncthreads();
  for (int64_t e = first + threadIdx.x; e < last; e += kThreads) row[jaccard.column[e]] = entry[e - first];
}

unsigned item_blocks(int64_t n, int64_t each) { return static_cast<unsigned>(ceil_div(n, each)); }

int64_t sets_room(const RerankOptions& options) { return power_of_two(options.k1 * (options.k1_half + 1)); }

// Warps of a block of sets_kernel: as many as its shared memory allows.
int64_t sets_warps(const RerankOptions& options) {
  return std::clamp<int64_t>(kRerankSharedLimit / (4 * sets_room(options)), 1, kWarps);
}

int64_t jaccard_blocks(int64_t rows, int64_t targets) {
  return std::clamp<int64_t>(kJaccardBytes / (4 * std::max<int64_t>(targets, 1)), 1,
                             std::max<int64_t>(1, std::min(rows, kJaccardBlocks)));
}

}  // namespace

int64_t rerank_sets_shared(const RerankOptions& options) { return sets_warps(options) * 4 * sets_room(options); }

int64_t rerank_expand_shared(const RerankOptions& options, int64_t longest) {
  return 12 * power_of_two(options.k2 * longest);
}

void rerank_norms(const RerankPairs& pairs, double* norm, double* inverse_norm, cudaStream_t stream) {
  REID_LAUNCH(norms_kernel, dim3(item_blocks(pairs.queries + pairs.galleries, kWarps)), dim3(kThreads), 0, stream,
              pairs, norm, inverse_norm);
}

int64_t rerank_resolve_ties_shared(int64_t k) { return kWarps * 16 * k; }

void rerank_resolve_ties(const RerankLists& lists, const RerankPairs& pairs, const double* norm, int64_t keep,
                         bool cosine, bool square, int32_t* ids, float* distances, cudaStream_t stream) {
  REID_LAUNCH(resolve_ties_kernel, dim3(item_blocks(lists.n, kWarps)), dim3(kThreads),
              rerank_resolve_ties_shared(lists.k), stream, lists, pairs, norm, keep, cosine, square, ids, distances);
}

void rerank_half_sets(const RerankLists& lists, int64_t k1_half, int32_t* sets, int32_t* sizes, cudaStream_t stream) {
  const int64_t room = power_of_two(k1_half);
  REID_LAUNCH(half_sets_kernel, dim3(item_blocks(lists.n, kWarps)), dim3(kThreads), kWarps * 4 * room, stream, lists,
              static_cast<int>(k1_half), static_cast<int>(room), sets, sizes);
}

void rerank_sets(const RerankLists& lists, const int32_t* half_sets, const int32_t* half_sizes,
                 const RerankOptions& options, int64_t* sizes, const int64_t* indptr, int32_t* columns,
                 cudaStream_t stream) {
  const int64_t warps = sets_warps(options);
  REID_LAUNCH(sets_kernel, dim3(item_blocks(lists.n, warps)), dim3(static_cast<unsigned>(warps * 32)),
              rerank_sets_shared(options), stream, lists, half_sets, half_sizes, options,
              static_cast<int>(sets_room(options)), sizes, indptr, columns);
}

void rerank_weights(const RerankLists& lists, const RerankPairs& pairs, const RerankOptions& options,
                    const int64_t* indptr, const int32_t* columns, float* weights, cudaStream_t stream) {
  REID_LAUNCH(weights_kernel, dim3(item_blocks(lists.n, kWarps)), dim3(kThreads), 0, stream, lists, pairs, options,
              indptr, columns, weights);
}

void rerank_expand(const RerankLists& lists, const RerankRows& v, const RerankOptions& options, int64_t longest,
                   int64_t* sizes, const int64_t* indptr, int32_t* columns, float* values, cudaStream_t stream) {
  REID_LAUNCH(expand_kernel, dim3(static_cast<unsigned>(lists.n)), dim3(kThreads),
              rerank_expand_shared(options, longest), stream, lists, v, options,
              static_cast<int>(power_of_two(options.k2 * longest)), sizes, indptr, columns, values);
}

int64_t rerank_jaccard_scratch(int64_t rows, int64_t targets) {
  return jaccard_blocks(rows, targets) * 4 * (targets + targets / 32 + 1);
}

void rerank_jaccard(const RerankRows& v, const RerankRows& inverse, int64_t rows, int64_t targets, bool store_half,
                    void* scratch, int64_t* sizes, const int64_t* indptr, int32_t* columns, float* distances,
                    cudaStream_t stream) {
  if (rows == 0) return;
  const int64_t blocks = jaccard_blocks(rows, targets);
  float* sums = static_cast<float*>(scratch);
  unsigned* marks = reinterpret_cast<unsigned*>(sums + blocks * targets);
  REID_LAUNCH(jaccard_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kJaccardThreads), 0, stream, v, inverse, rows,
              targets, store_half, sums, marks, sizes, indptr, columns, distances);
}

void rerank_final(float* d, int64_t rows, int64_t n, const float* largest, float lambda, float rest, bool blend_raw,
                  const RerankOptions& options, const RerankRows& jaccard, cudaStream_t stream) {
  constexpr int64_t kMaxRows = 65535;
  for (int64_t q = 0; q < rows; q += kMaxRows) {
    const RerankRows part{jaccard.indptr + q, jaccard.column, jaccard.value};
    const dim3 grid(static_cast<unsigned>(ceil_div(n, kPart)), static_cast<unsigned>(std::min(rows - q, kMaxRows)));
    REID_LAUNCH(final_kernel, grid, dim3(kThreads), 0, stream, d + q * n, n, largest + q, lambda, rest, blend_raw,
                options, part);
  }
}

}  // namespace reidfast::cuda
