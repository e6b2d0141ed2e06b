// What the host layer needs to know of the CUDA runtime, without its headers.
#pragma once

#include <cstddef>
#include <string>

#include "kernels/params.h"

namespace rmp {
namespace cuda {

// Why no device can be used here; empty if one can.
std::string no_device();

// The multiprocessors of a device. Raises std::runtime_error if there is none of that number.
int processors(int device);

// Bytes of device memory that `scratch` of a step must point to.
std::size_t step_scratch_bytes(const StepParams& p);

// Memory of a device, for as long as this lives.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(int device, std::size_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  void* get() const { return memory_; }

 private:
  int device_ = 0;
  void* memory_ = nullptr;
};

}  // namespace cuda
}  // namespace rmp
