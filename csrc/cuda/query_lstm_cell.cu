// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Forward: one thread per cell. Backward: one thread per cell of the query, which walks the rows that share it and adds
// up their gradients in order. Loads of a warp are adjacent. No atomics.
#include <cmath>

#include "csrc/common/sigmoid.h"
#include "csrc/cuda/device.h"
#include "csrc/cuda/query_lstm_cell.h"

namespace reidfast::cuda {
namespace {

constexpr int kThreads = 256;

template <typename A>
__device__ __forceinline__ A sigmoid(A a) {
  A z, not_z;
  sigmoid_and_complement(a, z, not_z);
  return z;
}

template <typename T>
__device__ __forceinline__ LstmGates<acc_t<T>> activate(const T* gates, const T* query, int64_t run) {
  using A = acc_t<T>;
  const A i = widen(gates[0]) + widen(query[0]), f = widen(gates[run]) + widen(query[run]);
  const A g = widen(gates[2 * run]) + widen(query[2 * run]), o = widen(gates[3 * run]) + widen(query[3 * run]);
  return {sigmoid(i), sigmoid(f), std::tanh(g), sigmoid(o)};
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    query_lstm_cell_fwd_kernel(const T* __restrict__ gates, const T* __restrict__ query, const T* __restrict__ c,
                               CellShape shape, T* __restrict__ h, T* __restrict__ c_new) {
  using A = acc_t<T>;
  const int64_t e = blockIdx.x * int64_t(kThreads) + threadIdx.x, run = shape.run;
  if (e >= shape.rows * run) return;
  const int64_t row = e / run, col = e - row * run;
  const LstmGates<A> a = activate(gates + row * 4 * run + col, query + row % shape.query_rows * 4 * run + col, run);
  const A state = lstm_cell_state(a, widen(c[e]));
  c_new[e] = narrow<T>(state);
  h[e] = narrow<T>(a.o * std::tanh(state));
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    query_lstm_cell_bwd_kernel(const T* __restrict__ grad_h, const T* __restrict__ grad_c_new,
                               const T* __restrict__ gates, const T* __restrict__ query, const T* __restrict__ c,
                               CellShape shape, T* __restrict__ grad_gates, T* __restrict__ grad_query,
                               T* __restrict__ grad_c) {
  using A = acc_t<T>;
  const int64_t e = blockIdx.x * int64_t(kThreads) + threadIdx.x, run = shape.run;
  if (e >= shape.query_rows * run) return;
  const int64_t query_row = e / run, col = e - query_row * run;
  const T* q = query + query_row * 4 * run + col;
  LstmGates<A> sum{0, 0, 0, 0};
#pragma unroll 2
  for (int64_t row = query_row; row < shape.rows; row += shape.query_rows) {
    const int64_t at = row * run + col;
    const LstmGates<A> a = activate(gates + row * 4 * run + col, q, run);
    const A state = widen(c[at]);
    const A gh = grad_h ? widen(grad_h[at]) : A(0), gc = grad_c_new ? widen(grad_c_new[at]) : A(0);
    A to_c;
    const LstmGates<A> d = lstm_cell_backward(a, state, std::tanh(lstm_cell_state(a, state)), gh, gc, to_c);
    T* out = grad_gates + row * 4 * run + col;
    out[0] = narrow<T>(d.i);
    out[run] = narrow<T>(d.f);
    out[2 * run] = narrow<T>(d.g);
    out[3 * run] = narrow<T>(d.o);
    grad_c[at] = narrow<T>(to_c);
    sum = {sum.i + d.i, sum.f + d.f, sum.g + d.g, sum.o + d.o};
  }
  if (!grad_query) return;
  T* out = grad_query + query_row * 4 * run + col;
  out[0] = narrow<T>(sum.i);
  out[run] = narrow<T>(sum.f);
  out[2 * run] = narrow<T>(sum.g);
  out[3 * run] = narrow<T>(sum.o);
}

dim3 blocks_for(int64_t items) { return dim3(static_cast<unsigned>(ceil_div(items, kThreads))); }

}  // namespace

template <typename T>
void query_lstm_cell(const T* gates, const T* query, const T* c, CellShape shape, T* h, T* c_new, cudaStream_t stream) {
  REID_LAUNCH((query_lstm_cell_fwd_kernel<T>), blocks_for(shape.rows * shape.run), dim3(kThreads), 0, stream, gates,
              query, c, shape, h, c_new);
}

template <typename T>
void query_lstm_cell_backward(const T* grad_h, const T* grad_c_new, const T* gates, const T* query, const T* c,
                              CellShape shape, T* grad_gates, T* grad_query, T* grad_c, cudaStream_t stream) {
  REID_LAUNCH((query_lstm_cell_bwd_kernel<T>), blocks_for(shape.query_rows * shape.run), dim3(kThreads), 0, stream,
              grad_h, grad_c_new, gates, query, c, shape, grad_gates, grad_query, grad_c);
}

#define INSTANTIATE(T)                                                                                               \
  template void query_lstm_cell<T>(const T*, const T*, const T*, CellShape, T*, T*, cudaStream_t);                   \
  template void query_lstm_cell_backward<T>(const T*, const T*, const T*, const T*, const T*, CellShape, T*, T*, T*, \
                                            cudaStream_t);
REID_CUDA_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE

}  // namespace reidfast::cuda
