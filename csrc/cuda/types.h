// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The CUDA names that a launcher's declaration needs, without a CUDA header, so that csrc/cuda/<op>.h can be included
// by the bindings.
#pragma once

#include <cstdint>

struct CUstream_st;
typedef struct CUstream_st* cudaStream_t;
struct __half;
struct __nv_bfloat16;

// Explicit instantiations of a launcher: `#define INSTANTIATE(T) template void f<T>(...);` then
// REID_CUDA_FOR_EACH_FLOAT(INSTANTIATE).
#define REID_CUDA_FOR_EACH_FLOAT(macro) macro(float) macro(double) macro(__half) macro(__nv_bfloat16)
