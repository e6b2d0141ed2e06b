// Sums over a block of threads, in one order for any grid.
#pragma once

#include "kernels/cuda/scalar.h"

namespace rmp {
namespace RMP_PATH {
namespace {

constexpr unsigned kWarp = 32, kAllLanes = 0xFFFFFFFFu;

// The block's dynamic shared memory.
template <class T>
RMP_DEVICE T* shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
#else
  return static_cast<T*>(simt::shared_memory());
#endif
}

// The sum over a warp, in every lane.
template <class T>
RMP_DEVICE T warp_sum(T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// The sum over a block of kCount threads, in thread 0. All threads must come here; shared memory holds a number per
// warp and may be used again after the next barrier, which is here at the beginning.
template <int kCount>
RMP_DEVICE double block_sum(double value) {
  double* sums = shared_memory<double>();
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x != 0) return 0.0;
  value = sums[0];
#pragma unroll
  for (int warp = 1; warp < kCount / static_cast<int>(kWarp); ++warp) value += sums[warp];
  return value;
}

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp
