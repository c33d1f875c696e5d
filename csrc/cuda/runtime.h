// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <cstdint>

namespace reidfast::cuda {

// The CUDA runtime that is linked into reidfast keeps a current device of its own beside torch's.
void set_device(int device);

// Throws where this build holds neither machine code nor PTX that the device can run. Asked once per device.
void check_architecture(int device);

// Bytes of shared memory that a block may have on the current device, once its kernel has been allowed to.
int64_t shared_memory_limit();

}  // namespace reidfast::cuda
