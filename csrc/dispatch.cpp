#include "csrc/dispatch.h"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#if defined(RMP_CUDA)
#include "kernels/cuda/runtime.h"
#endif

namespace rmp {

#if defined(RMP_CUDA)
namespace cuda {
extern const Launchers launchers;
}
#endif

#if defined(RMP_X86_PATHS)
namespace avx512 {
extern const Launchers launchers;
}
namespace avx2 {
extern const Launchers launchers;
}
#endif
#if defined(RMP_TEST_PATHS)
namespace wide {
extern const Launchers launchers;
}
#endif
namespace baseline {
extern const Launchers launchers;
}

namespace {

struct Path {
  std::string name;
  const Launchers* launchers;
  bool runs_here;
  bool chosen_unasked;
};

const std::vector<Path>& table() {
  static const std::vector<Path> paths = [] {
    std::vector<Path> all;
#if defined(RMP_X86_PATHS)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    all.push_back({"avx512", &avx512::launchers, avx512, true});
    all.push_back({"avx2", &avx2::launchers, avx2, true});
#endif
#if defined(RMP_TEST_PATHS)
    all.push_back({"wide", &wide::launchers, avx2, false});
#endif
    all.push_back({"baseline", &baseline::launchers, true, true});
    return all;
  }();
  return paths;
}

[[noreturn]] void refuse(const std::string& name, const std::string& value) {
  std::string known;
  for (const std::string& path : cpu_paths()) known += (known.empty() ? "'" : ", '") + path + "'";
  throw std::invalid_argument("`" + name + "` must be one of " + known + " on this processor, got '" + value + "'");
}

const Path& find(const std::string& name, const std::string& value) {
  for (const Path& path : table()) {
    if (path.runs_here && path.name == value) return path;
  }
  refuse(name, value);
}

}  // namespace

std::vector<std::string> cpu_paths() {
  std::vector<std::string> names;
  for (const Path& path : table()) {
    if (path.runs_here) names.push_back(path.name);
  }
  return names;
}

const std::string& cpu_path() {
  static const std::string chosen = [] {
    const char* wanted = std::getenv("RMP_FAST_CPU");
    if (wanted && *wanted) return find("RMP_FAST_CPU", wanted).name;
    return std::find_if(table().begin(), table().end(),
                        [](const Path& path) { return path.runs_here && path.chosen_unasked; })
        ->name;
  }();
  return chosen;
}

const Launchers& launchers(const std::optional<std::string>& path) {
#if defined(RMP_CUDA)
  if (path && *path == "cuda") return cuda::launchers;
#endif
  return *find("path", path ? *path : cpu_path()).launchers;
}

#if defined(RMP_CUDA)

bool built_with_cuda() { return true; }

std::string cuda_problem() { return cuda::no_device(); }

Target resolve(const Device& device, const std::optional<std::string>& path, std::uintptr_t cuda_stream) {
  const bool named = path && *path == "cuda";
  if (device.cuda ? path && !named : named) {
    throw std::invalid_argument("`path` must be one for tensors on " + device.text() + ", got '" + *path +
                                "'; leave it out");
  }
  if (!device.cuda) return {&launchers(path), thread_count(), {}};
  return {&cuda::launchers, 1, {reinterpret_cast<void*>(cuda_stream), device.index, cuda::processors(device.index)}};
}

std::shared_ptr<void> step_scratch(const StepParams& params, const Device& device) {
  auto memory = std::make_shared<cuda::DeviceMemory>(device.index, cuda::step_scratch_bytes(params));
  return std::shared_ptr<void>(memory, memory->get());
}

#else

bool built_with_cuda() { return false; }

std::string cuda_problem() {
  return "this extension was built without CUDA; pip install -C cmake.define.RMP_FAST_CUDA=ON builds it";
}

Target resolve(const Device&, const std::optional<std::string>& path, std::uintptr_t) {
  return {&launchers(path), thread_count(), {}};
}

std::shared_ptr<void> step_scratch(const StepParams&, const Device&) { return nullptr; }

#endif

int thread_count() { return std::max(1, omp_get_max_threads()); }

}  // namespace rmp
