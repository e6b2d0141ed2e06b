// Kernels with faults that the simulation must find, and the same without.
#include <cuda_runtime.h>

namespace {

constexpr int kThreads = 64;

struct Parameters {
  float* out;  // (kThreads), or (blocks)
  int fault;
};

enum Fault {
  none,
  missing_barrier,     // shared memory is read while others write it
  unwritten_shared,    // shared memory is read that nobody wrote
  beyond_shared,       // shared memory is written behind its end
  beyond_global,       // so is global memory
  unaligned,           // four numbers are read at an address that is no multiple of 16
  divergent_barrier,   // threads of a block wait at different barriers
  divergent_exchange,  // some lanes of a warp stay away from an exchange
  shared_total,        // blocks add to the same number
  wide_shift,          // an undefined operation of the language
};

// out[i] = i + the sum over the warp of 1, neighbours being exchanged through shared memory.
__global__ void __launch_bounds__(kThreads) neighbours_kernel(const __grid_constant__ Parameters p) {
  float* shared = static_cast<float*>(simt::shared_memory());
  const unsigned i = threadIdx.x, other = (i + 33) % kThreads;
  if (p.fault != unwritten_shared || i != 0) shared[i] = static_cast<float>(i);
  if (p.fault == beyond_shared && i == 0) shared[kThreads] = 0.0f;
  if (p.fault == divergent_barrier) {
    if (i < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if (p.fault != missing_barrier) {
    __syncthreads();
  }
  const float neighbour = shared[other];
  float ones = 1.0f;
  if (p.fault != divergent_exchange || i % 32 != 5) {
    for (int lanes = 16; lanes > 0; lanes /= 2) ones += __shfl_xor_sync(0xFFFFFFFFu, ones, lanes);
  }
  const unsigned voters = __ballot_sync(0xFFFFFFFFu, i % 2);
  const float below = __shfl_down_sync(0xFFFFFFFFu, static_cast<float>(i), 1u);
  const bool right = voters == 0xAAAAAAAAu && below == static_cast<float>(i % 32 == 31 ? i : i + 1) &&
                     __any_sync(0xFFFFFFFFu, i % 32 == 7) && !__any_sync(0xFFFFFFFFu, 0);
  const int shift = p.fault == wide_shift ? 40 : 0;
  const float one = static_cast<float>(1 << shift);
  const unsigned at = p.fault == beyond_global && i == 0 ? kThreads : i;
  if (p.fault == unaligned) {
    p.out[at] = reinterpret_cast<const float4*>(p.out + 1)->x;
  } else {
    p.out[at] = right ? neighbour + ones * one : -1.0f;
  }
}

__global__ void total_kernel(const __grid_constant__ Parameters p) {
  if (threadIdx.x != 0) return;
  if (p.fault == shared_total) {
    p.out[0] += 1.0f;
  } else {
    p.out[blockIdx.x] += 1.0f;
  }
}

}  // namespace

// Returns the launch's error; `out` holds kThreads numbers.
extern "C" __attribute__((visibility("default"))) const char* simt_faulty(float* out, int fault) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(fault == shared_total ? 4 : 1);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kThreads * sizeof(float);
  const cudaError_t error =
      cudaLaunchKernelEx(&config, fault == shared_total ? total_kernel : neighbours_kernel, Parameters{out, fault});
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}
