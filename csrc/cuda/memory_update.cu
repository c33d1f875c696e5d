// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// One block per (part, batch member). The block whose member is the first with its row owns that row: it walks all
// members of the row in batch order. The others leave at once. So every row has one writer: no atomics, no races, one
// order.
#include <cmath>

#include "csrc/cuda/device.h"
#include "csrc/cuda/memory_update.h"

namespace reidfast::cuda {
namespace {

constexpr int kThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    memory_update_kernel(T* __restrict__ bank, int64_t rows, int64_t dim, int64_t part_stride, int64_t row_stride,
                         const acc_t<T>* __restrict__ values, const int64_t* __restrict__ indices, int64_t count,
                         acc_t<T> momentum, bool normalize) {
  using A = acc_t<T>;
  __shared__ A scratch[kThreads / 32];
  const int64_t member = blockIdx.x, part = blockIdx.y, index = indices[member];
  // Indices are not checked on the device (that would need a synchronisation); none outside the bank is touched.
  if (index < 0 || index >= rows) return;
  int earlier = 0;
  for (int64_t b = threadIdx.x; b < member; b += kThreads) earlier |= indices[b] == index;
  if (__syncthreads_or(earlier)) return;

  T* row = bank + part * part_stride + index * row_stride;
  const A fresh = A(1) - momentum;
  for (int64_t b = member; b < count; ++b) {
    if (indices[b] != index) continue;  // the same answer in every thread
    const A* value = values + (part * count + b) * dim;
    A norm = 1;
    if (normalize) {
      A square = 0;
      for (int64_t d = threadIdx.x; d < dim; d += kThreads) {
        const A v = momentum * widen(row[d]) + fresh * value[d];
        square += v * v;
      }
      norm = sqrt(block_sum(square, scratch));
      if (norm == A(0)) norm = 1;
    }
    // Each thread reads and writes its own columns only, here and for the next member.
    for (int64_t d = threadIdx.x; d < dim; d += kThreads)
      row[d] = narrow<T>((momentum * widen(row[d]) + fresh * value[d]) / norm);
  }
}

}  // namespace

template <typename T, typename A>
void memory_update(T* bank, int64_t parts, int64_t rows, int64_t dim, int64_t part_stride, int64_t row_stride,
                   const A* values, const int64_t* indices, int64_t count, A momentum, bool normalize,
                   cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(parts));
  REID_LAUNCH((memory_update_kernel<T>), grid, dim3(kThreads), 0, stream, bank, rows, dim, part_stride, row_stride,
              values, indices, count, momentum, normalize);
}

#define INSTANTIATE(T)                                                                                       \
  template void memory_update<T, acc_t<T>>(T*, int64_t, int64_t, int64_t, int64_t, int64_t, const acc_t<T>*, \
                                           const int64_t*, int64_t, acc_t<T>, bool, cudaStream_t);
REID_CUDA_FOR_EACH_FLOAT(INSTANTIATE)

}  // namespace reidfast::cuda
