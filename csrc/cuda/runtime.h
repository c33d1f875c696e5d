// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

namespace reidfast::cuda {

// The CUDA runtime that is linked into reidfast keeps a current device of its own beside torch's.
void set_device(int device);

}  // namespace reidfast::cuda
