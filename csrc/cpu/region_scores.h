// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <cstdint>
#include <type_traits>

#include "csrc/common/region_scores.h"
#include "csrc/cpu/isa.h"

namespace reidfast::cpu {

// The type of the table: wider than the data, so that differences of its large sums keep the digits of small means.
template <typename T>
using Table = std::conditional_t<std::is_same_v<T, double>, long double, double>;

}  // namespace reidfast::cpu

REID_CPU_DECLARE(
    // tables [B, H+1, W+1]: tables[b, y, x] = sum of attention [B, H, W] over the cells above y and left of x, in
    // double. whole [B]: whether every cell of the map is finite; the table of one that is not means nothing. Images
    // [begin, end).
    template <typename T> void region_scores_tables(const T* attention, int64_t height, int64_t width, int64_t begin,
                                                    int64_t end, Table<T>* tables, bool* whole);

    // scores [P], boxes [begin, end)
    template <typename T> void region_scores_boxes(const T* attention, const Table<T>* tables, const bool* whole,
                                                   int64_t height, int64_t width, Boxes boxes,
                                                   const int64_t* image_index, int64_t begin, int64_t end, T* scores);

    // cells [P], shares [P] = grad / number of cells; boxes [begin, end)
    template <typename T> void region_scores_shares(const T* grad, Boxes boxes, int64_t height, int64_t width,
                                                    int64_t begin, int64_t end, CellRange* cells, double* shares);

    // grad_attention [B, H, W]; rows [begin, end) of the B * H
    template <typename T>
    void region_scores_backward_rows(const CellRange* cells, const double* shares, const int64_t* image_index,
                                     int64_t num_boxes, int64_t height, int64_t width, int64_t begin, int64_t end,
                                     double* row, T* grad_attention);)
