// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <cstdint>

#include "csrc/cpu/isa.h"

REID_CPU_DECLARE(
    // bank [rows, dim] row stride `stride`, values [count, dim], indices [count] (-1 = skip): in order,
    // row <- momentum * row + (1 - momentum) * value, then row / |row| where asked and |row| > 0
    template <typename T, typename A> void memory_update_rows(T* bank, int64_t stride, int64_t dim, const A* values,
                                                              const int64_t* indices, int64_t count, A momentum,
                                                              bool normalize);)
