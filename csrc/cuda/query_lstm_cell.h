// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include "csrc/common/query_lstm_cell.h"
#include "csrc/cuda/types.h"

namespace reidfast::cuda {

// h, c_new [rows, run]; letters of CellShape.
template <typename T>
void query_lstm_cell(const T* gates, const T* query, const T* c, CellShape shape, T* h, T* c_new, cudaStream_t stream);

// grad_h and grad_c_new may be null; so may grad_query, the sum over the rows that share a row of the query.
template <typename T>
void query_lstm_cell_backward(const T* grad_h, const T* grad_c_new, const T* gates, const T* query, const T* c,
                              CellShape shape, T* grad_gates, T* grad_query, T* grad_c, cudaStream_t stream);

}  // namespace reidfast::cuda
