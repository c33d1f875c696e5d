// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/query_lstm_cell.h"

#include <algorithm>

#include "csrc/cpu/lanes.h"

namespace reidfast::cpu::REID_ISA {

namespace {

// The activated gates of up to one vector of cells; `plane` separates i, f, g and o.
template <typename T>
REID_HD LstmGates<AccVec<T>> activate(const T* gates, const T* query, int64_t plane, int64_t n) {
  using V = AccVec<T>;
  const auto sum = [&](int64_t k) { return load_acc(gates + k * plane, n) + load_acc(query + k * plane, n); };
  LstmGates<V> a;
  V unused;
  sigmoid_pair<V>(sum(0), a.i, unused);
  sigmoid_pair<V>(sum(1), a.f, unused);
  a.g = sum(2).tanh();
  sigmoid_pair<V>(sum(3), a.o, unused);
  return a;
}

}  // namespace

template <typename T>
void query_lstm_cell_forward(const T* gates, const T* query, const T* c, CellShape shape, int64_t begin, int64_t end,
                             T* h, T* c_new) {
  using V = AccVec<T>;
  const int64_t run = shape.run;
  for (int64_t e = begin; e < end;) {
    const int64_t row = e / run, col = e - row * run, stop = std::min(end, (row + 1) * run);
    const T* g = gates + row * 4 * run + col;
    const T* q = query + (row % shape.query_rows) * 4 * run + col;
    for (; e < stop; e += kLanes<T>, g += kLanes<T>, q += kLanes<T>) {
      const int64_t n = stop - e;
      const LstmGates<V> a = activate(g, q, run, n);
      const V state = lstm_cell_state(a, load_acc(c + e, n));
      store_acc(c_new + e, state, n);
      store_acc(h + e, a.o * state.tanh(), n);
    }
    e = stop;
  }
}

template <typename T>
void query_lstm_cell_backward(const T* grad_h, const T* grad_c_new, const T* gates, const T* query, const T* c,
                              CellShape shape, int64_t begin, int64_t end, T* grad_gates, T* grad_query, T* grad_c) {
  using V = AccVec<T>;
  const int64_t run = shape.run;
  for (int64_t e = begin; e < end;) {
    const int64_t query_row = e / run, stop = std::min(end, (query_row + 1) * run);
    for (; e < stop; e += kLanes<T>) {
      const int64_t col = e - query_row * run, n = stop - e;
      const T* q = query + query_row * 4 * run + col;
      LstmGates<V> sum{V(0), V(0), V(0), V(0)};
      for (int64_t row = query_row; row < shape.rows; row += shape.query_rows) {
        const int64_t at = row * run + col;
        const LstmGates<V> a = activate(gates + row * 4 * run + col, q, run, n);
        const V state = load_acc(c + at, n);
        const V gh = grad_h ? load_acc(grad_h + at, n) : V(0), gc = grad_c_new ? load_acc(grad_c_new + at, n) : V(0);
        V to_c;
        const LstmGates<V> d = lstm_cell_backward(a, state, lstm_cell_state(a, state).tanh(), gh, gc, to_c);
        T* out = grad_gates + row * 4 * run + col;
        store_acc(out, d.i, n);
        store_acc(out + run, d.f, n);
        store_acc(out + 2 * run, d.g, n);
        store_acc(out + 3 * run, d.o, n);
        store_acc(grad_c + at, to_c, n);
        sum = {sum.i + d.i, sum.f + d.f, sum.g + d.g, sum.o + d.o};
      }
      if (!grad_query) continue;
      T* out = grad_query + query_row * 4 * run + col;
      store_acc(out, sum.i, n);
      store_acc(out + run, sum.f, n);
      store_acc(out + 2 * run, sum.g, n);
      store_acc(out + 3 * run, sum.o, n);
    }
    e = stop;
  }
}

#define INSTANTIATE(T)                                                                                            \
  template void query_lstm_cell_forward<T>(const T*, const T*, const T*, CellShape, int64_t, int64_t, T*, T*);    \
  template void query_lstm_cell_backward<T>(const T*, const T*, const T*, const T*, const T*, CellShape, int64_t, \
                                            int64_t, T*, T*, T*);
REID_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE

}  // namespace reidfast::cpu::REID_ISA
