// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/weighted_map.h"

#include <algorithm>

#include "csrc/cpu/tile.h"

namespace reidfast::cpu::REID_ISA {
namespace {

constexpr int64_t kTileCells = 256;  // a tile of one vector per cell stays in the first-level cache
constexpr int kMaps = 6;             // weighted sums that share one reading of the cells
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kVectors = 4;  // vectors of channels per cell, as many as the registers hold beside kMaps
#else
constexpr int kVectors = 2;
#endif

// sums [MB] of NV vectors each += weights [MB][cells] x rows; row l starts at x + l * stride.
template <int MB, int NV, typename T, typename A>
REID_HD void accumulate(const T* x, int64_t stride, int64_t lanes, const A* weights, int64_t padded, int64_t cells,
                        A* sums, int64_t sums_stride) {
  using V = AccVec<T>;
  constexpr int64_t w = kLanes<T>;
  V acc[MB][NV];
  for (int m = 0; m < MB; ++m)
    for (int v = 0; v < NV; ++v) acc[m][v] = V::loadu(sums + m * sums_stride + v * w);
  for (int64_t l = 0; l < cells; ++l) {
    V row[NV];
    for (int v = 0; v < NV; ++v) row[v] = load_some(x + l * stride + v * w, lanes - v * w);
    for (int m = 0; m < MB; ++m) {
      const V weight(weights[m * padded + l]);
      for (int v = 0; v < NV; ++v) acc[m][v] = at::vec::fmadd(weight, row[v], acc[m][v]);
    }
  }
  for (int m = 0; m < MB; ++m)
    for (int v = 0; v < NV; ++v) acc[m][v].store(sums + m * sums_stride + v * w);
}

template <int NV, typename T, typename A>
REID_HD void accumulate_maps(int64_t maps, const T* x, int64_t stride, int64_t lanes, const A* weights, int64_t padded,
                             int64_t cells, A* sums, int64_t sums_stride) {
  switch (maps) {
#define REID_CASE(MB)                                                                      \
  case MB:                                                                                 \
    accumulate<MB, NV, T, A>(x, stride, lanes, weights, padded, cells, sums, sums_stride); \
    break;
    REID_CASE(1) REID_CASE(2) REID_CASE(3) REID_CASE(4) REID_CASE(5) REID_CASE(6)
#undef REID_CASE
  }
}

// Channels first, four channels at a time: df_c = sum_m g[m, c] w[m], dw[m] += sum_c g[m, c] f_c, lanes along cells.
template <int MB, int NC, typename T, typename A>
REID_HD void backward_rows(const T* x, int64_t x_stride, const A* weights, const A* g, int64_t g_stride, int64_t padded,
                           int64_t cells, T* dx, int64_t dx_stride, bool add, A* dw) {
  using V = AccVec<T>;
  constexpr int64_t w = kLanes<T>;
  for (int64_t l = 0; l < cells; l += w) {
    const int64_t n = cells - l;
    V weight[MB];
    for (int m = 0; m < MB; ++m) weight[m] = V::loadu(weights + m * padded + l);
    if (dx) {
      for (int c = 0; c < NC; ++c) {
        V d = add ? load_some(dx + c * dx_stride + l, n) : V(0);
        for (int m = 0; m < MB; ++m) d = at::vec::fmadd(V(g[m * g_stride + c]), weight[m], d);
        store_some(dx + c * dx_stride + l, d, n);
      }
    }
    if (dw) {
      V f[NC];
      for (int c = 0; c < NC; ++c) f[c] = load_some(x + c * x_stride + l, n);
      for (int m = 0; m < MB; ++m) {
        V d = V::loadu(dw + m * padded + l);
        for (int c = 0; c < NC; ++c) d = at::vec::fmadd(V(g[m * g_stride + c]), f[c], d);
        d.store(dw + m * padded + l);
      }
    }
  }
}

// Channels last, one cell: lanes along channels.
template <int MB, typename T, typename A>
REID_HD void backward_cell(const T* x, const A* weights, const A* g, int64_t g_stride, int64_t padded, int64_t channels,
                           T* dx, bool add, A* dw) {
  using V = AccVec<T>;
  constexpr int64_t w = kLanes<T>;
  V sum[MB];
  for (int m = 0; m < MB; ++m) sum[m] = V(0);
  for (int64_t c = 0; c < channels; c += w) {
    const int64_t n = channels - c;
    V d = dx && add ? load_some(dx + c, n) : V(0);
    const V f = dw ? load_some(x + c, n) : V(0);
    for (int m = 0; m < MB; ++m) {
      const V grad = V::loadu(g + m * g_stride + c);  // zeros past the channels
      d = at::vec::fmadd(V(weights[m * padded]), grad, d);
      sum[m] = at::vec::fmadd(f, grad, sum[m]);
    }
    if (dx) store_some(dx + c, d, n);
  }
  if (dw)
    for (int m = 0; m < MB; ++m) dw[m * padded] += sum_lanes(sum[m]);
}

template <int MB, typename T, typename A>
inline void backward_maps(const FeatureMap<const T>& map, const T* x, const A* weights, const A* g, int64_t g_stride,
                          int64_t padded, int64_t channels, const FeatureMap<T>& grad_map, T* dx, bool add, A* dw) {
  const int64_t cells = map.cells;
  if (map.channels_last) {
    for (int64_t l = 0; l < cells; ++l)
      backward_cell<MB, T, A>(x + l * map.cell_stride, weights + l, g, g_stride, padded, channels,
                              dx ? dx + l * grad_map.cell_stride : nullptr, add, dw ? dw + l : nullptr);
    return;
  }
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4)
    backward_rows<MB, 4, T, A>(x + c * map.channel_stride, map.channel_stride, weights, g + c, g_stride, padded, cells,
                               dx ? dx + c * grad_map.channel_stride : nullptr, grad_map.channel_stride, add, dw);
  for (; c < channels; ++c)
    backward_rows<MB, 1, T, A>(x + c * map.channel_stride, map.channel_stride, weights, g + c, g_stride, padded, cells,
                               dx ? dx + c * grad_map.channel_stride : nullptr, grad_map.channel_stride, add, dw);
}

}  // namespace

template <typename T, typename A>
void weighted_map_fwd(const FeatureMap<const T>& map, const A* weights, int64_t num_weights, int64_t padded_cells,
                      ChannelBlocks blocks, int64_t begin, int64_t end, T* out) {
  constexpr int64_t w = kLanes<T>;
  constexpr int64_t wide = w * kVectors;
  __at_align__ A tile[kTileCells * w];
  __at_align__ A sums[kMaps * wide];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / blocks.per_map, first = item % blocks.per_map * blocks.size;
    const int64_t last = std::min(first + blocks.size, map.channels);
    const A* image_weights = weights + b * num_weights * padded_cells;
    const int64_t step = map.channels_last ? wide : w;
    for (int64_t c = first; c < last; c += step) {
      const int64_t lanes = std::min(step, last - c);
      const T* x = map.at(b, c);
      // A map of one tile is transposed once for all weights; a larger one once per six of them.
      const bool one_tile = map.cells <= kTileCells;
      if (!map.channels_last && one_tile) load_tile(x, map.channel_stride, lanes, map.cells, tile);
      for (int64_t m = 0; m < num_weights; m += kMaps) {
        const int64_t maps = std::min<int64_t>(kMaps, num_weights - m);
        const A* rows = image_weights + m * padded_cells;
        std::fill(sums, sums + kMaps * wide, A(0));
        if (map.channels_last) {
          accumulate_maps<kVectors>(maps, x, map.cell_stride, lanes, rows, padded_cells, map.cells, sums, wide);
        } else {
          for (int64_t l = 0; l < map.cells; l += kTileCells) {
            const int64_t cells = std::min(kTileCells, map.cells - l);
            if (!one_tile) load_tile(x + l, map.channel_stride, lanes, cells, tile);
            accumulate_maps<1, A, A>(maps, tile, w, w, rows + l, padded_cells, cells, sums, wide);
          }
        }
        for (int64_t k = 0; k < maps; ++k)
          for (int64_t v = 0; v * w < lanes; ++v)
            store_some(out + (b * num_weights + m + k) * map.channels + c + v * w,
                       AccVec<T>::loadu(sums + k * wide + v * w), lanes - v * w);
      }
    }
  }
}

template <typename T, typename A>
void weighted_map_bwd(const FeatureMap<const T>& map, const A* weights, const T* grad, int64_t num_weights,
                      int64_t padded_cells, ChannelBlocks blocks, int64_t begin, int64_t end,
                      const FeatureMap<T>& grad_map, A* grad_weights, A* scratch) {
  A* g = scratch;  // [M][blocks.size], zeros past the channels
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / blocks.per_map, first = item % blocks.per_map * blocks.size;
    const int64_t channels = std::min(blocks.size, map.channels - first);
    for (int64_t m = 0; m < num_weights; ++m) {
      const T* row = grad + (b * num_weights + m) * map.channels + first;
      for (int64_t c = 0; c < blocks.size; ++c) g[m * blocks.size + c] = c < channels ? static_cast<A>(row[c]) : A(0);
    }
    A* dw = grad_weights ? grad_weights + item * num_weights * padded_cells : nullptr;
    if (dw) std::fill(dw, dw + num_weights * padded_cells, A(0));
    for (int64_t m = 0; m < num_weights; m += kMaps) {
      const A* rows = weights + (b * num_weights + m) * padded_cells;
      T* dx = grad_map.data ? grad_map.at(b, first) : nullptr;
      switch (std::min<int64_t>(kMaps, num_weights - m)) {
#define REID_CASE(MB)                                                                                              \
  case MB:                                                                                                         \
    backward_maps<MB, T, A>(map, map.at(b, first), rows, g + m * blocks.size, blocks.size, padded_cells, channels, \
                            grad_map, dx, m > 0, dw ? dw + m * padded_cells : nullptr);                            \
    break;
        REID_CASE(1) REID_CASE(2) REID_CASE(3) REID_CASE(4) REID_CASE(5) REID_CASE(6)
#undef REID_CASE
      }
    }
  }
}

#define INSTANTIATE(T)                                                                                                 \
  template void weighted_map_fwd<T, acc_t<T>>(const FeatureMap<const T>&, const acc_t<T>*, int64_t, int64_t,           \
                                              ChannelBlocks, int64_t, int64_t, T*);                                    \
  template void weighted_map_bwd<T, acc_t<T>>(const FeatureMap<const T>&, const acc_t<T>*, const T*, int64_t, int64_t, \
                                              ChannelBlocks, int64_t, int64_t, const FeatureMap<T>&, acc_t<T>*,        \
                                              acc_t<T>*);
REID_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE

}  // namespace reidfast::cpu::REID_ISA
