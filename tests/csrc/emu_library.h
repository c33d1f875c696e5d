// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The bindings of csrc/torch once more, for the tests: what they register for CUDA serves CPU tensors here, as
// torch.ops.reidfast_emu.* beside the real torch.ops.reidfast.*. Their CPU implementations go to a dispatch key that no
// tensor has.
#pragma once

#define REID_EMU_KEY_CUDA CPU
#define REID_EMU_KEY_CPU Vulkan
#define REID_EMU_KEY_Autograd Autograd
#define REID_EMU_KEY_AutogradCUDA AutogradCPU
#define REID_EMU_KEY_AutogradCPU AutogradXLA
#define REID_EMU_KEY_ADInplaceOrView ADInplaceOrView
#define REID_EMU_KEY_CompositeExplicitAutograd CompositeExplicitAutograd
#define REID_EMU_KEY_CompositeImplicitAutograd CompositeImplicitAutograd

#undef TORCH_LIBRARY_FRAGMENT
#define TORCH_LIBRARY_FRAGMENT(ns, m) REID_EMU_EXPAND_FRAGMENT(ns##_emu, m, C10_UID)
#define REID_EMU_EXPAND_FRAGMENT(ns, m, uid) _TORCH_LIBRARY_FRAGMENT(ns, m, uid)
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(ns, k, m) REID_EMU_EXPAND_IMPL(ns##_emu, REID_EMU_KEY_##k, m, C10_UID)
#define REID_EMU_EXPAND_IMPL(ns, k, m, uid) _TORCH_LIBRARY_IMPL(ns, k, m, uid)
