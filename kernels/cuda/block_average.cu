#include "kernels/cuda/blocks.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/reduce.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

struct Averages {
  Blocks blocks;             // planes: of the whole batch
  const float* x;            // (planes, height, width)
  float* out;                // (planes, bands, columns)
  const float* measurement;  // like `out`: its change is written instead; or null: averages
  const Look* looks;         // (items)
  std::int64_t item_planes;  // planes of one item
};

RMP_DEVICE void finish(const Averages& p, std::int64_t plane, std::int64_t block, float n, float sum) {
  p.out[block] = p.measurement ? block_change(sum, n, p.measurement[block], p.looks[plane / p.item_planes].noise_ratio)
                               : sum * (1.0f / n);
}

template <int kFactor>
__global__ void __launch_bounds__(kThreads, kResident) quad_averages_kernel(const __grid_constant__ Averages p) {
  const Blocks& s = p.blocks;
  const unsigned each = s.quads_per_plane();
  for (std::int64_t plane = blockIdx.y; plane < s.planes; plane += gridDim.y) {
    for (std::int64_t i = blockIdx.x * kThreads + threadIdx.x; i < each; i += gridDim.x * kThreads) {
      const Quad<kFactor> quad(s, plane * each + i);
      const float* x = p.x + quad.first;
      Four d[kFactor];
      float sums[4 / kFactor];
      if (all_aligned(p.x)) {
        load_rows(x, s.width, quad.rows, Whole{}, d);
      } else {
        load_rows(x, s.width, quad.rows, Part{4}, d);
      }
      block_sums(d, sums);
#pragma unroll
      for (int j = 0; j < 4 / kFactor; ++j) {
        finish(p, plane, quad.block + j, static_cast<float>(quad.rows * kFactor), sums[j]);
      }
    }
  }
}

// kLanes threads share a block of pixels.
template <int kLanes>
__global__ void __launch_bounds__(kThreads, kResident) averages_kernel(const __grid_constant__ Averages p) {
  const Blocks& s = p.blocks;
  const unsigned each = s.bands * s.columns, lane = threadIdx.x % kLanes;
  constexpr unsigned kPerBlock = kThreads / kLanes;
  for (std::int64_t plane = blockIdx.y; plane < s.planes; plane += gridDim.y) {
    for (unsigned i = blockIdx.x * kPerBlock + threadIdx.x / kLanes; i < each; i += gridDim.x * kPerBlock) {
      const unsigned band = i / s.columns, column = i - band * s.columns;
      const unsigned wide = s.block_columns(column), n = s.band_rows(band) * wide;
      const float* x = p.x + (plane * s.height + band * s.factor_rows) * s.width + column * s.factor_columns;
      float sum = 0.0f;
      for (unsigned k = lane; k < n; k += kLanes) {
        const unsigned r = k / wide;
        sum += x[static_cast<std::int64_t>(r) * s.width + (k - r * wide)];
      }
      if constexpr (kLanes == kWarp) sum = warp_sum(sum);
      if (lane == 0) finish(p, plane, plane * each + i, static_cast<float>(n), sum);
    }
  }
}

void launch_averages(const char* name, const BlockShape& s, const float* x, float* out, const StepParams* step,
                     const Queue& queue) {
  const Averages p{blocks_of(s),
                   x,
                   out,
                   step ? step->measurement : nullptr,
                   step ? step->looks : nullptr,
                   step ? step->blocks.planes : 1};
  if (has_quads(s)) {
    const dim3 grid = grid_of(ceil_div(quads_per_plane(s), kThreads), s.planes, queue);
    launch(name, s.factor_rows == 2 ? quad_averages_kernel<2> : quad_averages_kernel<4>, grid, kThreads, 0, queue, p);
    return;
  }
  constexpr std::int64_t kManyPixels = 16;
  const bool shared = s.factor_rows * s.factor_columns > kManyPixels;
  const std::int64_t blocks = s.bands() * s.columns(), per_block = shared ? kThreads / kWarp : kThreads;
  launch(name, shared ? averages_kernel<kWarp> : averages_kernel<1>,
         grid_of(ceil_div(blocks, per_block), s.planes, queue), kThreads, 0, queue, p);
}

struct Adjoint {
  Blocks blocks;   // planes: of the whole batch
  const float* y;  // (planes, bands, columns)
  float* out;      // (planes, height, width)
};

// A thread takes four columns of one row.
__global__ void __launch_bounds__(kThreads, kResident) adjoint_kernel(const __grid_constant__ Adjoint p) {
  const Blocks& s = p.blocks;
  const unsigned across = (s.width + 3) / 4, each = s.height * across;
  const bool whole = s.width % 4 == 0 && all_aligned(p.out);
  for (std::int64_t plane = blockIdx.y; plane < s.planes; plane += gridDim.y) {
    for (unsigned i = blockIdx.x * kThreads + threadIdx.x; i < each; i += gridDim.x * kThreads) {
      const unsigned row = i / across, band = row / s.factor_rows, first = 4 * (i - row * across);
      const unsigned left = s.width - first;
      const int count = left < 4 ? static_cast<int>(left) : 4;
      const float* y = p.y + (plane * s.bands + band) * s.columns;
      const unsigned rows = s.band_rows(band);
      Four value{};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (k >= count) continue;
        const unsigned column = (first + k) / s.factor_columns;
        value.v[k] = y[column] * (1.0f / static_cast<float>(rows * s.block_columns(column)));
      }
      float* out = p.out + (plane * s.height + row) * s.width + first;
      if (whole) {
        store(out, value, Whole{});
      } else {
        store(out, value, Part{count});
      }
    }
  }
}

}  // namespace

void block_average(const BlockAverageParams& p) {
  launch_averages("block_average", p.blocks, p.x, p.out, nullptr, p.queue);
}

void block_average_adjoint(const BlockAverageParams& p) {
  const BlockShape& s = p.blocks;
  launch("block_average_adjoint", adjoint_kernel,
         grid_of(ceil_div(s.height * ceil_div(s.width, 4), kThreads), s.planes, p.queue), kThreads, 0, p.queue,
         Adjoint{blocks_of(s), p.x, p.out});
}

void block_corrections(const StepParams& p, const float* denoised, float* table) {
  BlockShape all = p.blocks;
  all.planes *= p.items;
  launch_averages("natural_step: block averages", all, denoised, table, &p, p.queue);
}

}  // namespace RMP_PATH
}  // namespace rmp
