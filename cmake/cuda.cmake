# The CUDA kernels, where wanted. They more than double the time to compile, and who has nvcc need not have a device: AUTO
# builds them on machines with both. Images and wheels for other machines are built with RMP_FAST_CUDA=ON.
if(NOT RMP_FAST_CUDA MATCHES "^(ON|OFF|AUTO)$")
  message(FATAL_ERROR "RMP_FAST_CUDA must be ON, OFF or AUTO, got '${RMP_FAST_CUDA}'")
endif()
if(RMP_FAST_CUDA STREQUAL "OFF")
  return()
endif()
if(RMP_FAST_CUDA STREQUAL "AUTO" AND NOT EXISTS /dev/nvidiactl AND NOT EXISTS /dev/dxg)
  message(STATUS "rmp_fast: no CUDA kernels, since this machine has no NVIDIA device; RMP_FAST_CUDA=ON builds them")
  return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(RMP_FAST_CUDA STREQUAL "ON")
    message(FATAL_ERROR "RMP_FAST_CUDA is ON and no CUDA compiler was found; put nvcc on PATH or set CUDACXX")
  endif()
  message(STATUS "rmp_fast: no CUDA kernels, since there is no CUDA compiler; put nvcc on PATH or set CUDACXX")
  return()
endif()

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # so that the module loads where there is no driver
set(CMAKE_CUDA_ARCHITECTURES OFF)       # said below, with fewer passes of the front end
enable_language(CUDA)

set(rmp_fast_code "arch=compute_80,code=[sm_80,sm_86,sm_89]")
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)  # knows no sm_100
  list(APPEND rmp_fast_code "arch=compute_90,code=[sm_90,compute_90]")
else()
  list(APPEND rmp_fast_code "arch=compute_90,code=sm_90" "arch=compute_100,code=[sm_100,compute_100]")
endif()
message(STATUS "rmp_fast: CUDA kernels by ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION}: ${rmp_fast_code}")

add_library(kernels_cuda OBJECT
            kernels/cuda/block_average.cu kernels/cuda/clip_gradient.cu kernels/cuda/mask.cu
            kernels/cuda/natural_step.cu kernels/cuda/normals.cu kernels/cuda/runtime.cu kernels/cuda/separable_blur.cu
            kernels/cuda/spectral.cu kernels/launchers.cpp)
target_include_directories(kernels_cuda PRIVATE ${PROJECT_SOURCE_DIR})
target_compile_definitions(kernels_cuda PRIVATE RMP_PATH=cuda)
set_target_properties(kernels_cuda PROPERTIES CUDA_VISIBILITY_PRESET hidden)
# Contraction is off as on the CPU; 1675: nvcc unrolls these loops unasked.
target_compile_options(kernels_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false --expt-relaxed-constexpr
                       -diag-suppress 1675 -Xcompiler=-Wall,-Wextra>)
foreach(code IN LISTS rmp_fast_code)
  target_compile_options(kernels_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-gencode ${code}>")
endforeach()
target_sources(_core PRIVATE $<TARGET_OBJECTS:kernels_cuda>)
target_compile_definitions(_core PRIVATE RMP_CUDA)
set_target_properties(_core PROPERTIES CUDA_RUNTIME_LIBRARY Static)
