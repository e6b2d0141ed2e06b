// The words of CUDA that the kernels use, with their meaning on the CPU, for the C++ compiler and its sanitizers.
//
// A launch runs its blocks one after the other and the threads of a block as fibers, both in an order shuffled from a
// seed. A fiber runs until it ends or waits at a barrier or for the other lanes of its warp. What CUDA leaves undefined
// is an error of the launch: threads of a block at different barriers, lanes of a warp in different exchanges or ended.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(4) uchar4 {
  unsigned char x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// --- The runtime -----------------------------------------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719,
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
using cudaStream_t = struct Stream*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMalloc(void** memory, std::size_t bytes);  // filled with NaN
cudaError_t cudaFree(void* memory);

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& body);

// Of this block: as many bytes as the launch asked for, filled with NaN.
void* shared_memory();
void barrier(int line);
// Waits for all lanes of the mask at the same line of code; returns the values of the 32 lanes, one every 16 bytes.
const unsigned char* exchange(unsigned mask, const void* value, std::size_t bytes, int line);
// A write that may meet others of the same value.
void store_through(unsigned char* p, unsigned char value);
unsigned lane();

template <class T>
T from_lane(const unsigned char* values, unsigned lane) {
  T value;
  std::memcpy(&value, values + 16 * lane, sizeof value);
  return value;
}

}  // namespace simt

template <class... Formal, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Formal...), Actual&&... arguments) {
  return simt::launch(*config, [&] { kernel(arguments...); });
}

// --- Inside a kernel -------------------------------------------------------------------------------------------------

inline void __syncthreads(int line = __builtin_LINE()) { simt::barrier(line); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int line = __builtin_LINE()) {
  return simt::from_lane<T>(simt::exchange(mask, &value, sizeof value, line), simt::lane() ^ lanes);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int line = __builtin_LINE()) {
  const unsigned char* values = simt::exchange(mask, &value, sizeof value, line);
  const unsigned source = simt::lane() + lanes;
  return source < 32 ? simt::from_lane<T>(values, source) : value;
}
inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  const unsigned char* values = simt::exchange(mask, &predicate, sizeof predicate, line);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) votes |= static_cast<unsigned>(simt::from_lane<int>(values, lane) != 0) << lane;
  }
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) != 0;
}

inline void __stwt(unsigned char* p, unsigned char value) { simt::store_through(p, value); }
