#include "kernels/cuda/groups.h"
#include "kernels/cuda/launch.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

__global__ void __launch_bounds__(kThreads, kResident) normals_kernel(const __grid_constant__ NormalsParams p) {
  for (std::int64_t item = blockIdx.y; item < p.items; item += gridDim.y) {
    const std::int64_t seed = p.seeds[item];
    float* out = p.out + item * p.size;
    over_groups(p.size, all_aligned(out), [&](std::int64_t at, auto span) {
      store(out + at, normals_at(seed, p.evaluation, p.stream, at), span);
    });
  }
}

}  // namespace

void normals(const NormalsParams& p) {
  launch("normals", normals_kernel, grid_of(ceil_div(p.size, 4 * kThreads), p.items, p.queue), kThreads, 0, p.queue, p);
}

void philox(std::uint32_t counter[4], const std::uint32_t key[2]) {
  philox(philox_keys<std::uint32_t>(key[0], key[1]), counter[0], counter[1], counter[2], counter[3]);
}

}  // namespace RMP_PATH
}  // namespace rmp
