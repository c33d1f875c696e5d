// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <cstdint>

#include "csrc/common/query_lstm_cell.h"
#include "csrc/cpu/isa.h"

REID_CPU_DECLARE(
    // h, c_new [rows, run]; columns [begin, end) of the rows * run elements
    template <typename T> void query_lstm_cell_forward(const T* gates, const T* query, const T* c, CellShape shape,
                                                       int64_t begin, int64_t end, T* h, T* c_new);

    // grad_h and grad_c_new may be null, not both. grad_query (the sum over the rows that share one) may be null.
    // Elements [begin, end) of the query_rows * run columns.
    template <typename T> void query_lstm_cell_backward(const T* grad_h, const T* grad_c_new, const T* gates,
                                                        const T* query, const T* c, CellShape shape, int64_t begin,
                                                        int64_t end, T* grad_gates, T* grad_query, T* grad_c);)
