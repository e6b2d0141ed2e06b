// Sums of squares by chunks, then the gradients times what follows from them, which every block adds up for itself.
#include "kernels/cuda/groups.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/reduce.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

RMP_DEVICE void add_squares(double& sum, const Four& f) {
#pragma unroll
  for (int i = 0; i < 4; ++i) sum = plus_square(sum, f.v[i]);
}

// body(at, Whole or Part) for this thread's groups of one chunk of an item, none behind its end.
template <class Body>
RMP_DEVICE void over_chunk(std::int64_t chunk, std::int64_t size, bool whole, const Body& body) {
  const std::int64_t end = (chunk + 1) * kChunk;
  over_groups(chunk * kChunk, end < size ? end : size, 0, 1, whole, body);
}

__global__ void __launch_bounds__(kThreads, kResident) squares_kernel(const __grid_constant__ ClipParams p) {
  const std::int64_t chunks = p.chunks();
  for (std::int64_t item = blockIdx.y; item < p.items; item += gridDim.y) {
    const float* gradient = p.gradient + item * p.size;
    const float* direction = behind(p.direction, item * p.size);
    const float* residual = behind(p.residual, item * p.residual_size);
    for (std::int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
      Squares sum{};
      if (direction) {
        over_chunk(chunk, p.size, all_aligned(gradient, direction), [&](std::int64_t at, auto span) {
          const Four g = load(gradient + at, span), u = load(direction + at, span);
          add_squares(sum.gradient, g);
          add_squares(sum.direction, u);
        });
        sum.gradient = block_sum<kThreads>(sum.gradient);
        sum.direction = block_sum<kThreads>(sum.direction);
      }
      if (residual) {
        over_chunk(chunk, p.residual_size, all_aligned(residual),
                   [&](std::int64_t at, auto span) { add_squares(sum.residual, load(residual + at, span)); });
        sum.residual = block_sum<kThreads>(sum.residual);
      }
      if (threadIdx.x == 0) p.squares[item * chunks + chunk] = sum;
    }
  }
}

// By every warp for itself.
RMP_DEVICE float scale_of(const ClipParams& p, std::int64_t item) {
  const std::int64_t chunks = p.chunks();
  Squares sum{};
  for (std::int64_t chunk = threadIdx.x % kWarp; chunk < chunks; chunk += kWarp) {
    const Squares& s = p.squares[item * chunks + chunk];
    sum.gradient += s.gradient;
    sum.direction += s.direction;
    sum.residual += s.residual;
  }
  const double limit = p.direction ? p.limit[item] : 0.0, weight = p.direction ? p.weight[item] : 0.0;
  return gradient_scale(warp_sum(sum.gradient), warp_sum(sum.direction), warp_sum(sum.residual), limit, weight);
}

__global__ void __launch_bounds__(kThreads, kResident) scale_kernel(const __grid_constant__ ClipParams p) {
  for (std::int64_t item = blockIdx.y; item < p.items; item += gridDim.y) {
    const float scale = scale_of(p, item);
    const std::int64_t base = item * p.size;
    over_groups(p.size, all_aligned(p.gradient + base, p.out + base), [&](std::int64_t at, auto span) {
      Four g = load(p.gradient + base + at, span);
#pragma unroll
      for (int i = 0; i < 4; ++i) g.v[i] *= scale;
      store(p.out + base + at, g, span);
    });
  }
}

}  // namespace

void clip_gradient(const ClipParams& p) {
  launch("clip_gradient: squares", squares_kernel, grid_of(p.chunks(), p.items, p.queue), kThreads,
         kThreads / kWarp * sizeof(double), p.queue, p);
  launch("clip_gradient", scale_kernel, grid_of(ceil_div(p.size, 4 * kThreads), p.items, p.queue), kThreads, 0, p.queue,
         p);
}

}  // namespace RMP_PATH
}  // namespace rmp
