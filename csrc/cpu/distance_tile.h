// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The parts of the distance tile around the matrix product: packing feature rows, and turning products into distances.
#pragma once

#include <cstdint>

#include "csrc/common/metric.h"
#include "csrc/cpu/isa.h"

REID_CPU_DECLARE(
    // Sum of squares of x [dim], elements `step` apart, in double: the same bits wherever the row stands.
    template <typename S> void row_square_sum(const S* x, int64_t step, int64_t dim, double* sum);

    // Whether every element of x [dim] is finite.
    template <typename S> void row_is_finite(const S* x, int64_t step, int64_t dim, bool* finite);

    // y [dim] = x [dim] * scale, in the type of y. scale 1 copies.
    template <typename S, typename T> void pack_row(const S* x, int64_t step, int64_t dim, double scale, T* y);

    // Products [n] of one query row with n gallery rows -> distances d [n], which may be the same memory. query_sq,
    // gallery_sq [n]: squared norms, read by the Euclidean metrics alone.
    template <typename T> void products_to_distances(const T* product, int64_t n, Metric metric, double query_sq,
                                                     const double* gallery_sq, T* d);)
