// How a kernel gets onto the device: the grid's size, the launch, and what went wrong with it.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "kernels/params.h"

namespace rmp {
namespace RMP_PATH {
namespace {

// Blocks of 256 threads that a multiprocessor holds at once, which bounds their registers to 64.
constexpr int kResident = 4;
// Blocks per place on the device: the last ones, which leave others idle, then matter little.
constexpr std::int64_t kWaves = 8;
constexpr std::int64_t kMostRows = 65535;  // of a grid

inline void check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  // Reads the error away where it is not the device's own: the next launch is not to blame for it.
  static_cast<void>(cudaGetLastError());
  throw std::runtime_error("CUDA: " + what + " failed: " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) +
                           "); an earlier kernel may be the cause, which CUDA_LAUNCH_BLOCKING=1 tells");
}

// Makes a device the current one while this lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device == before_) return;
    check(cudaSetDevice(device), "cudaSetDevice(" + std::to_string(device) + ")");
    changed_ = true;
  }
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Rows of blocks for `items`, each sharing the `tiles` of one, or of every 65535th.
inline dim3 grid_of(std::int64_t tiles, std::int64_t items, const Queue& queue) {
  if (tiles == 0 || items == 0) return dim3(0, 0);
  const std::int64_t rows = std::min(items, kMostRows);
  const std::int64_t most = ceil_div(kWaves * kResident * queue.processors, rows);
  return dim3(static_cast<unsigned>(std::min(tiles, most)), static_cast<unsigned>(rows));
}

// Does nothing for an empty grid.
template <class Params>
void launch(const char* name, void (*kernel)(Params), dim3 grid, int threads, std::size_t shared_bytes,
            const Queue& queue, const Params& params) {
  if (grid.x == 0 || grid.y == 0) return;
  const CurrentDevice device(queue.device);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(queue.stream);
  check(cudaLaunchKernelEx(&config, kernel, params), std::string("kernel `") + name + "`");
}

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp
