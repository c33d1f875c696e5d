# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
#
# CUDA: csrc/cuda/*.cu as a torch-free static library with the static runtime, so that it links and loads beside any build of torch.
# REIDFAST_CUDA_ARCHITECTURES is a CMake list ("80-real;90"); setup.py makes it from TORCH_CUDA_ARCH_LIST.
file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/cuda/*.cu)
if(REIDFAST_WITH_CUDA AND CUDA_SOURCES)
  set(CMAKE_CUDA_ARCHITECTURES ${REIDFAST_CUDA_ARCHITECTURES})
  set(CMAKE_CUDA_STANDARD 17) # CMake 3.25 does not know CUDA_STANDARD 20
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  add_library(kernels_cuda STATIC ${CUDA_SOURCES})
  target_compile_options(kernels_cuda PRIVATE -lineinfo --expt-relaxed-constexpr -Xcompiler=-fvisibility=hidden
                                              -Xcompiler=-ffile-prefix-map=${CMAKE_SOURCE_DIR}/=)
  set_target_properties(kernels_cuda PROPERTIES POSITION_INDEPENDENT_CODE ON)
  add_library(reidfast_cuda MODULE ${CUDA_BINDINGS})
  binds_torch(reidfast_cuda)
  links_torch(reidfast_cuda)
  string(REPLACE ";" " " architectures "${REIDFAST_CUDA_ARCHITECTURES}")
  target_compile_definitions(reidfast_cuda PRIVATE REID_WITH_CUDA REID_CUDA_ARCHITECTURES="${architectures}")
  target_link_libraries(reidfast_cuda PRIVATE kernels_cuda CUDA::cudart_static)
endif()

# cuda_check: every .cu for sm_80, sm_90 and sm_100, without a GPU and without CUDA enabled above; spilled registers are an error.
if(CMAKE_CUDA_COMPILER)
  set(CHECK_LAUNCHER)
  if(CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CHECK_LAUNCHER --launcher ${CMAKE_CUDA_COMPILER_LAUNCHER})
  endif()
  find_program(REIDFAST_PYTHON NAMES python3 python)
  add_custom_target(cuda_check
    COMMAND ${REIDFAST_PYTHON} ${CMAKE_SOURCE_DIR}/tools/check_spills.py --nvcc ${CMAKE_CUDA_COMPILER} --output ${CMAKE_BINARY_DIR}/cuda_check
            ${CHECK_LAUNCHER} ${CUDA_SOURCES}
    WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} USES_TERMINAL VERBATIM)
endif()
