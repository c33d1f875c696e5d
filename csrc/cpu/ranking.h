// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Ranks by counting: the rank of the k-th true match is k plus the number of non-matches before it. Every kernel works
// on one row of distances whose columns that must not count (matches, junk) hold NaN, which compares false with all.
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"

REID_CPU_DECLARE(
    // x [n], elements `step` apart -> y [n] in the type of y; *has_nan |= any NaN.
    template <typename S, typename T> void load_row(const S* x, int64_t step, int64_t n, T* y, bool* has_nan);

    // d [n], columns first_column ...; thresholds [m] ascending, column [m] = where each threshold's own match stands.
    // Adds to below[k] the columns with d < t, to equal[k] those with d == t, to before[k] those of them whose column
    // is lower than column[k].
    template <typename T>
    void count_row(const T* d, int64_t n, int64_t first_column, const T* thresholds, const int64_t* column, int64_t m,
                   int64_t* below, int64_t* equal, int64_t* before);

    // The same for a whole row of a matrix, in place: nothing holds NaN; columns that must not count stand in `lists`
    // lists skip[i] [skipped[i]]. *has_nan |= any NaN. Not *done, and nothing added: the row has ties or NaN, or this
    // processor has no way for it; count_row serves then.
    void count_whole_row(const float* d, int64_t n, const float* thresholds, int64_t m, const int64_t* const* skip,
                         const int64_t* skipped, int lists, int64_t* below, bool* has_nan, bool* done);

    // Appends to (values, columns) the columns with d < bound, in order; *found of them. Room for n.
    template <typename T> void select_below(const T* d, int64_t n, int64_t first_column, T bound, T* values,
                                            int64_t* columns, int64_t* found);

    // Histogram of the `bits` bits that follow `prefix` (the leading prefix_bits) in the order-preserving integer of d;
    // NaN is skipped. histogram [2^bits].
    template <typename T>
    void histogram_row(const T* d, int64_t n, int prefix_bits, uint64_t prefix, int bits, int64_t* histogram);

    // Single-gallery-shot rank of one match: closer [identities] = images of each that are before it. d [n] distances,
    // identity [n] in [0, identities) or -1 = leave out; t, column: the match; own: its identity.
    template <typename T> void single_shot_closer(const T* d, int64_t n, const int32_t* identity, int32_t identities,
                                                  T t, int64_t column, int32_t own, int32_t* closer);

    // chance [max_rank] += P(rank <= r + 1) where one image of each identity is drawn, size [identities] there are and
    // closer of them before the match. pmf: scratch [max_rank].
    void single_shot_chance(const int32_t* closer, const int32_t* size, int32_t identities, int64_t max_rank,
                            double* pmf, double* chance);)
