#include "kernels/cuda/groups.h"
#include "kernels/cuda/launch.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

__global__ void __launch_bounds__(kThreads, kResident) mask_kernel(const __grid_constant__ MaskParams p) {
  for (std::int64_t item = blockIdx.y; item < p.items; item += gridDim.y) {
    const float* x = p.x + item * p.size;
    const std::uint8_t* kept = p.mask + item * p.mask_stride;
    float* out = p.out + item * p.size;
    over_groups(p.size, all_aligned(x, kept, out), [&](std::int64_t at, auto span) {
      Four f = load(x + at, span);
      const unsigned seen = load_mask(kept + at, span);
#pragma unroll
      for (int i = 0; i < 4; ++i) f.v[i] = seen >> i & 1 ? f.v[i] : 0.0f;
      store(out + at, f, span);
    });
  }
}

}  // namespace

void mask(const MaskParams& p) {
  launch("mask", mask_kernel, grid_of(ceil_div(p.size, 4 * kThreads), p.items, p.queue), kThreads, 0, p.queue, p);
}

}  // namespace RMP_PATH
}  // namespace rmp
