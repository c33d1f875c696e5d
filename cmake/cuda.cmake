# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
#
# CUDA: csrc/cuda/*.cu as a torch-free static library with the static runtime, so that it links beside any build of torch.
# REIDFAST_CUDA_ARCHITECTURES is a CMake list ("80;90a"); setup.py makes it from TORCH_CUDA_ARCH_LIST.
file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/cuda/*.cu)
if(REIDFAST_WITH_CUDA AND CUDA_SOURCES)
  if(NOT REIDFAST_CUDA_ARCHITECTURES)
    set(REIDFAST_CUDA_ARCHITECTURES 90)
  endif()
  set(CMAKE_CUDA_ARCHITECTURES ${REIDFAST_CUDA_ARCHITECTURES})
  set(CMAKE_CUDA_STANDARD 17) # CMake 3.25 does not know CUDA_STANDARD 20
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  add_library(kernels_cuda STATIC ${CUDA_SOURCES})
  target_compile_options(kernels_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo --expt-relaxed-constexpr -Xcompiler=-fvisibility=hidden>)
  set_target_properties(kernels_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static POSITION_INDEPENDENT_CODE ON)
  target_compile_definitions(_C PRIVATE REID_WITH_CUDA)
  target_include_directories(_C SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(_C PRIVATE kernels_cuda CUDA::cudart_static)
endif()
