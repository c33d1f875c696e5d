// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/region_scores.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/cpu/vec.h"

namespace reidfast::cpu::REID_ISA {

template <typename T>
void region_scores_tables(const T* attention, int64_t height, int64_t width, int64_t begin, int64_t end,
                          Table<T>* tables, bool* whole) {
  for (int64_t b = begin; b < end; ++b) {
    const T* map = attention + b * height * width;
    Table<T>* table = tables + b * (height + 1) * (width + 1);
    std::fill(table, table + width + 1, Table<T>(0));
    for (int64_t y = 0; y < height; ++y) {
      const Table<T>* above = table + y * (width + 1);
      Table<T>* here = table + (y + 1) * (width + 1);
      Table<T> left = 0;
      here[0] = 0;
      for (int64_t x = 0; x < width; ++x) {
        left += static_cast<Table<T>>(map[y * width + x]);
        here[x + 1] = above[x + 1] + left;
      }
    }
    bool finite = true;
    for (int64_t k = 0; k < height * width; ++k) finite &= std::isfinite(static_cast<acc_t<T>>(map[k]));
    whole[b] = finite;
  }
}

template <typename T>
void region_scores_boxes(const T* attention, const Table<T>* tables, const bool* whole, int64_t height, int64_t width,
                         Boxes boxes, const int64_t* image_index, int64_t begin, int64_t end, T* scores) {
  for (int64_t p = begin; p < end; ++p) {
    const CellRange r = boxes.cells(p, height, width);
    const int64_t b = image_index[p];
    Table<T> sum = 0;
    if (whole[b]) {
      const Table<T>* table = tables + b * (height + 1) * (width + 1);
      const Table<T>*top = table + r.y0 * (width + 1), *bottom = table + r.y1 * (width + 1);
      sum = (bottom[r.x1] - bottom[r.x0]) - (top[r.x1] - top[r.x0]);
    } else {
      for (int64_t y = r.y0; y < r.y1; ++y)
        for (int64_t x = r.x0; x < r.x1; ++x) sum += static_cast<Table<T>>(attention[(b * height + y) * width + x]);
    }
    const int64_t count = r.count();
    scores[p] =
        static_cast<T>(static_cast<acc_t<T>>(count == 0 ? std::numeric_limits<double>::quiet_NaN() : sum / count));
  }
}

template <typename T>
void region_scores_shares(const T* grad, Boxes boxes, int64_t height, int64_t width, int64_t begin, int64_t end,
                          CellRange* cells, double* shares) {
  for (int64_t p = begin; p < end; ++p) {
    cells[p] = boxes.cells(p, height, width);
    shares[p] = static_cast<double>(grad[p]) / static_cast<double>(std::max<int64_t>(1, cells[p].count()));
  }
}

template <typename T>
void region_scores_backward_rows(const CellRange* cells, const double* shares, const int64_t* image_index,
                                 int64_t num_boxes, int64_t height, int64_t width, int64_t begin, int64_t end,
                                 double* row, T* grad_attention) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / height, y = i - b * height;
    std::fill(row, row + width, 0.0);
    for (int64_t p = 0; p < num_boxes; ++p) {
      const CellRange& r = cells[p];
      if (image_index[p] != b || y < r.y0 || y >= r.y1) continue;
      for (int64_t x = r.x0; x < r.x1; ++x) row[x] += shares[p];
    }
    for (int64_t x = 0; x < width; ++x) grad_attention[i * width + x] = static_cast<T>(static_cast<acc_t<T>>(row[x]));
  }
}

#define INSTANTIATE(T)                                                                                             \
  template void region_scores_tables<T>(const T*, int64_t, int64_t, int64_t, int64_t, Table<T>*, bool*);           \
  template void region_scores_boxes<T>(const T*, const Table<T>*, const bool*, int64_t, int64_t, Boxes,            \
                                       const int64_t*, int64_t, int64_t, T*);                                      \
  template void region_scores_shares<T>(const T*, Boxes, int64_t, int64_t, int64_t, int64_t, CellRange*, double*); \
  template void region_scores_backward_rows<T>(const CellRange*, const double*, const int64_t*, int64_t, int64_t,  \
                                               int64_t, int64_t, int64_t, double*, T*);
REID_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE

}  // namespace reidfast::cpu::REID_ISA
