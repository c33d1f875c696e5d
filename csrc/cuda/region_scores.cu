// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Forward: one block per map builds its table, then one thread per box reads four entries of it. float64 maps, whose
// table has no wider type here, and maps with a NaN or infinity are summed cell by cell. Backward: one thread per cell
// looks at every box, in order. No atomics.
#include <cmath>

#include "csrc/cuda/device.h"
#include "csrc/cuda/region_scores.h"

namespace reidfast::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    region_scores_tables_kernel(const T* __restrict__ attention, int64_t height, int64_t width,
                                double* __restrict__ tables, bool* __restrict__ whole) {
  const T* map = attention + blockIdx.x * height * width;
  const int64_t stride = width + 1;
  double* table = tables + blockIdx.x * (height + 1) * stride;
  int bad = 0;
  for (int64_t x = threadIdx.x; x < stride; x += kThreads) table[x] = 0;
  for (int64_t y = threadIdx.x; y < height; y += kThreads) {  // along the rows
    double sum = 0;
    table[(y + 1) * stride] = 0;
    for (int64_t x = 0; x < width; ++x) {
      const auto value = widen(map[y * width + x]);
      bad |= !(value - value == 0);  // NaN or infinity
      table[(y + 1) * stride + x + 1] = sum += static_cast<double>(value);
    }
  }
  bad = __syncthreads_or(bad);
  for (int64_t x = 1 + threadIdx.x; x < stride; x += kThreads) {  // then down the columns
    double sum = 0;
    for (int64_t y = 1; y <= height; ++y) table[y * stride + x] = sum += table[y * stride + x];
  }
  if (threadIdx.x == 0) whole[blockIdx.x] = !bad;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    region_scores_boxes_kernel(const T* __restrict__ attention, const double* __restrict__ tables,
                               const bool* __restrict__ whole, int64_t batch, int64_t height, int64_t width,
                               Boxes boxes, const int64_t* __restrict__ image_index, int64_t num_boxes,
                               T* __restrict__ scores) {
  const int64_t p = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (p >= num_boxes) return;
  const int64_t b = image_index[p];
  const CellRange r = boxes.cells(p, height, width);
  const int64_t count = b >= 0 && b < batch ? r.count() : 0;
  double sum = 0;
  if (count > 0 && tables && whole[b]) {
    const double* table = tables + b * (height + 1) * (width + 1);
    const double *top = table + r.y0 * (width + 1), *bottom = table + r.y1 * (width + 1);
    sum = (bottom[r.x1] - bottom[r.x0]) - (top[r.x1] - top[r.x0]);
  } else if (count > 0) {
    for (int64_t y = r.y0; y < r.y1; ++y) {
      double row = 0;
      for (int64_t x = r.x0; x < r.x1; ++x) row += static_cast<double>(widen(attention[(b * height + y) * width + x]));
      sum += row;
    }
  }
  scores[p] = narrow<T>(static_cast<acc_t<T>>(count == 0 ? NAN : sum / static_cast<double>(count)));
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    region_scores_shares_kernel(const T* __restrict__ grad, Boxes boxes, int64_t height, int64_t width,
                                int64_t num_boxes, CellRange* __restrict__ cells, double* __restrict__ shares) {
  const int64_t p = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (p >= num_boxes) return;
  const CellRange r = boxes.cells(p, height, width);
  cells[p] = r;
  shares[p] = static_cast<double>(widen(grad[p])) / static_cast<double>(max(r.count(), int64_t(1)));
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    region_scores_bwd_kernel(const CellRange* __restrict__ cells, const double* __restrict__ shares,
                             const int64_t* __restrict__ image_index, int64_t num_boxes, int64_t batch, int64_t height,
                             int64_t width, T* __restrict__ grad_attention) {
  __shared__ CellRange near[kThreads];
  __shared__ double share[kThreads];
  __shared__ int64_t image[kThreads];
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  const int64_t b = i / (height * width), y = i / width - b * height, x = i % width;
  double sum = 0;
  for (int64_t p0 = 0; p0 < num_boxes; p0 += kThreads) {
    const int count = static_cast<int>(min(num_boxes - p0, int64_t(kThreads)));
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < count) {
      near[threadIdx.x] = cells[p0 + threadIdx.x];
      share[threadIdx.x] = shares[p0 + threadIdx.x];
      image[threadIdx.x] = image_index[p0 + threadIdx.x];
    }
    __syncthreads();
    for (int k = 0; k < count; ++k) {
      const CellRange& r = near[k];
      if (image[k] == b && y >= r.y0 && y < r.y1 && x >= r.x0 && x < r.x1) sum += share[k];
    }
  }
  if (i < batch * height * width) grad_attention[i] = narrow<T>(static_cast<acc_t<T>>(sum));
}

dim3 blocks_for(int64_t items) { return dim3(static_cast<unsigned>(ceil_div(items, kThreads))); }

}  // namespace

template <typename T>
void region_scores(const T* attention, int64_t batch, int64_t height, int64_t width, Boxes boxes,
                   const int64_t* image_index, int64_t num_boxes, double* tables, bool* whole, T* scores,
                   cudaStream_t stream) {
  if constexpr (std::is_same_v<T, double>)
    tables = nullptr;
  else
    REID_LAUNCH((region_scores_tables_kernel<T>), dim3(static_cast<unsigned>(batch)), dim3(kThreads), 0, stream,
                attention, height, width, tables, whole);
  REID_LAUNCH((region_scores_boxes_kernel<T>), blocks_for(num_boxes), dim3(kThreads), 0, stream, attention, tables,
              whole, batch, height, width, boxes, image_index, num_boxes, scores);
}

template <typename T>
void region_scores_backward(const T* grad, int64_t batch, int64_t height, int64_t width, Boxes boxes,
                            const int64_t* image_index, int64_t num_boxes, CellRange* cells, double* shares,
                            T* grad_attention, cudaStream_t stream) {
  REID_LAUNCH((region_scores_shares_kernel<T>), blocks_for(num_boxes), dim3(kThreads), 0, stream, grad, boxes, height,
              width, num_boxes, cells, shares);
  REID_LAUNCH((region_scores_bwd_kernel<T>), blocks_for(batch * height * width), dim3(kThreads), 0, stream, cells,
              shares, image_index, num_boxes, batch, height, width, grad_attention);
}

#define INSTANTIATE(T)                                                                                                \
  template void region_scores<T>(const T*, int64_t, int64_t, int64_t, Boxes, const int64_t*, int64_t, double*, bool*, \
                                 T*, cudaStream_t);                                                                   \
  template void region_scores_backward<T>(const T*, int64_t, int64_t, int64_t, Boxes, const int64_t*, int64_t,        \
                                          CellRange*, double*, T*, cudaStream_t);
REID_CUDA_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE

}  // namespace reidfast::cuda
