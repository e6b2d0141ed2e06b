// Which code path runs: that of the device on which the tensors lie. On the CPU the processor decides when the module
// is imported, or the environment variable RMP_FAST_CPU.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/device.h"
#include "kernels/launchers.h"

namespace rmp {

// Names of the paths that this processor can run, fastest first.
std::vector<std::string> cpu_paths();

// The path that is used where none is asked for. Raises std::invalid_argument if RMP_FAST_CPU names another one than
// those of cpu_paths().
const std::string& cpu_path();

// The launchers of `path`, by default of cpu_path(); "cuda" too where built. Raises std::invalid_argument for one that
// cannot run here.
const Launchers& launchers(const std::optional<std::string>& path);

bool built_with_cuda();
// Why CUDA kernels cannot run here; empty if they can.
std::string cuda_problem();

// What computes tensors on a device.
struct Target {
  const Launchers* run;
  int threads;
  Queue queue;
};

// `path` as for launchers(), and fit for the device; `cuda_stream` is a raw pointer, 0 the default stream. Raises
// std::invalid_argument otherwise, std::runtime_error if the device cannot be asked for its size.
Target resolve(const Device& device, const std::optional<std::string>& path, std::uintptr_t cuda_stream);

// Device memory that a step on a CUDA device needs.
std::shared_ptr<void> step_scratch(const StepParams& params, const Device& device);

// Threads that a kernel may use: those of the OpenMP runtime, which torch.set_num_threads sets.
int thread_count();

}  // namespace rmp
