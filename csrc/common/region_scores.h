// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Which cells of an attention map a box stands for: those whose centre (i + 0.5) lies inside (edges included), clipped
// to the map; where there are none, the one cell that holds the box's centre, moved to the nearest border cell when
// that is off the map.
#pragma once

#include <cmath>
#include <cstdint>

#include "csrc/common/macros.h"

namespace reidfast {

struct CellRange {
  int64_t y0, y1, x0, x1;                                          // half open
  REID_HD int64_t count() const { return (y1 - y0) * (x1 - x0); }  // 0: the box holds a NaN
};

// [begin, end) of the cells of one axis whose centres lie in [low, high].
REID_HD void cells_between(double low, double high, int64_t size, int64_t& begin, int64_t& end) {
  const double n = static_cast<double>(size);
  const double first = std::ceil(low - 0.5), last = std::floor(high - 0.5) + 1.0;
  begin = static_cast<int64_t>(first < 0.0 ? 0.0 : (first > n ? n : first));
  end = static_cast<int64_t>(last < 0.0 ? 0.0 : (last > n ? n : last));
}

// The cell of one axis that holds position p, clamped to the map.
REID_HD int64_t cell_at(double p, int64_t size) {
  const double cell = std::floor(p), top = static_cast<double>(size - 1);
  return static_cast<int64_t>(cell < 0.0 ? 0.0 : (cell > top ? top : cell));
}

REID_HD CellRange box_cells(double x1, double y1, double x2, double y2, int64_t height, int64_t width) {
  if (x1 != x1 || y1 != y1 || x2 != x2 || y2 != y2) return {0, 0, 0, 0};
  CellRange r;
  cells_between(x1, x2, width, r.x0, r.x1);
  cells_between(y1, y2, height, r.y0, r.y1);
  if (r.x0 < r.x1 && r.y0 < r.y1) return r;
  const double cx = 0.5 * x1 + 0.5 * x2, cy = 0.5 * y1 + 0.5 * y2;
  if (cx != cx || cy != cy) return {0, 0, 0, 0};  // opposite infinities
  r.x0 = cell_at(cx, width);
  r.y0 = cell_at(cy, height);
  r.x1 = r.x0 + 1;
  r.y1 = r.y0 + 1;
  return r;
}

// Boxes [P, 4] of float or double, as the user has them.
struct Boxes {
  const void* data;
  bool wide;  // double
  REID_HD double at(int64_t i) const {
    return wide ? static_cast<const double*>(data)[i] : static_cast<double>(static_cast<const float*>(data)[i]);
  }
  REID_HD CellRange cells(int64_t p, int64_t height, int64_t width) const {
    return box_cells(at(4 * p), at(4 * p + 1), at(4 * p + 2), at(4 * p + 3), height, width);
  }
};

}  // namespace reidfast
