// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

// Host/device functions of csrc/common. Always inlined: the CPU kernels are compiled for several instruction sets, and
// a shared out-of-line copy could be the one that this processor cannot run.
#if defined(__CUDACC__)
#define REID_HD __host__ __device__ __forceinline__
#else
#define REID_HD inline __attribute__((always_inline))
#endif
