#include <utility>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/runtime.h"

namespace rmp {
namespace RMP_PATH {

std::string no_device() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return "";
  static_cast<void>(cudaGetLastError());
  return error == cudaSuccess ? "this machine has no CUDA device" : std::string("CUDA: ") + cudaGetErrorString(error);
}

int processors(int device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "asking for the multiprocessors of device " + std::to_string(device));
  return count;
}

DeviceMemory::DeviceMemory(int device, std::size_t bytes) : device_(device) {
  if (bytes == 0) return;
  const CurrentDevice current(device);
  check(cudaMalloc(&memory_, bytes), "allocating " + std::to_string(bytes) + " bytes of scratch memory");
}

DeviceMemory::~DeviceMemory() {
  if (!memory_) return;
  int before = 0;
  // Nothing can be thrown from here, and at exit the driver may be gone already.
  if (cudaGetDevice(&before) == cudaSuccess && cudaSetDevice(device_) == cudaSuccess) {
    cudaFree(memory_);
    cudaSetDevice(before);
  }
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : device_(other.device_), memory_(std::exchange(other.memory_, nullptr)) {}

DeviceMemory& DeviceMemory::operator=(DeviceMemory&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(memory_, other.memory_);
  return *this;
}

}  // namespace RMP_PATH
}  // namespace rmp
