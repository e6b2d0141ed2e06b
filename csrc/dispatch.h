// Which code path runs. The processor decides when the module is imported, or the environment variable RMP_FAST_CPU.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/cpu/launchers.h"

namespace rmp {

// Names of the paths that this processor can run, fastest first.
std::vector<std::string> cpu_paths();

// The path that is used where none is asked for. Raises std::invalid_argument if RMP_FAST_CPU names another one than
// those of cpu_paths().
const std::string& cpu_path();

// The launchers of `path`, by default of cpu_path(). Raises std::invalid_argument for one that cannot run here.
const Launchers& launchers(const std::optional<std::string>& path);

// Threads that a kernel may use: those of the OpenMP runtime, which torch.set_num_threads sets.
int thread_count();

}  // namespace rmp
