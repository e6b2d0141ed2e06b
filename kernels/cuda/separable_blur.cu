// A pass blurs down the columns of every plane and writes it transposed; two passes blur both axes. A thread makes four
// rows of four columns. Samples beyond the ends are those that the boundary says. The adjoint takes the samples beyond
// the ends for zeros, makes results beyond them, and adds each to the sample that the boundary took from there.
#include "kernels/cuda/groups.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/reduce.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

constexpr int kColumns = 64, kRows = 32;  // of a tile
constexpr int kRun = 4;                   // rows of a thread
constexpr int kTileThreads = kColumns / 4 * (kRows / kRun), kTileResident = 6;
constexpr int kPitch = kRows + 4;  // a multiple of 4, for whole groups, and not of 32

struct Pass {
  std::int64_t planes;
  int height, width, radius;
  const float* taps;  // (2 * radius + 1)
  Boundary boundary;
  bool adjoint;
  const float* x;  // (planes, height, width)
  float* out;      // (planes, width, height)

  // A circular adjoint is the circular convolution with the taps reversed.
  RMP_SCALAR bool folds() const { return adjoint && boundary != Boundary::circular; }
  RMP_SCALAR int count() const { return 2 * radius + 1; }
  RMP_SCALAR int tiles_across() const { return (width + kColumns - 1) / kColumns; }
  RMP_SCALAR int tiles_down() const { return (height + kRows - 1) / kRows; }
};

RMP_DEVICE int modulo(int i, int n) {
  const int m = i % n;
  return m < 0 ? m + n : m;
}

// Which of the n samples continues the line at i, however far outside.
RMP_DEVICE int source(int i, int n, Boundary boundary) {
  if (static_cast<unsigned>(i) < static_cast<unsigned>(n)) return i;
  if (boundary == Boundary::replicate) return i < 0 ? 0 : n - 1;
  const int m = modulo(i, boundary == Boundary::reflect ? 2 * n : n);
  return m < n ? m : 2 * n - 1 - m;
}

// each(i) for every i of [-radius, n + radius) outside of the line that the boundary continues by sample q.
template <class Each>
RMP_DEVICE void over_copies(int q, int n, int radius, Boundary boundary, const Each& each) {
  if (boundary == Boundary::replicate) {
    if (q == 0) {
#pragma unroll 1
      for (int i = -radius; i < 0; ++i) each(i);
    }
    if (q == n - 1) {
#pragma unroll 1
      for (int i = n; i < n + radius; ++i) each(i);
    }
    return;
  }
  const int images[] = {q, -1 - q};
#pragma unroll
  for (const int image : images) {
#pragma unroll 1
    for (int i = -radius + modulo(image + radius, 2 * n); i < n + radius; i += 2 * n) {
      if (i != q) each(i);
    }
  }
}

RMP_DEVICE void accumulate(float weight, const Four& x, Four& sum) {
#pragma unroll
  for (int c = 0; c < 4; ++c) sum.v[c] = fused(weight, x.v[c], sum.v[c]);
}

// The blurred rows first, ..., first + kRun - 1 of four columns.
template <class Span>
RMP_DEVICE void blur_rows(const Pass& p, const float* column, int first, Span span, Four (&sum)[kRun]) {
  const int count = p.count();
  const bool folds = p.folds(), reversed = !p.adjoint;
  const auto weight = [&](int m) { return p.taps[reversed ? count - 1 - m : m]; };
  // Step m brings one row of samples, for row r of the results with weight m - r.
  const auto step = [&](int m, const float (&weights)[kRun]) {
    const int at = first - p.radius + m;
    const bool inside = static_cast<unsigned>(at) < static_cast<unsigned>(p.height);
    if (folds && !inside) return;
    const Four x = load(column + static_cast<std::int64_t>(source(at, p.height, p.boundary)) * p.width, span);
#pragma unroll
    for (int r = 0; r < kRun; ++r) {
      // The weights start and end one row after the other.
      if (static_cast<unsigned>(m - r) < static_cast<unsigned>(count)) accumulate(weights[r], x, sum[r]);
    }
  };
  float weights[kRun] = {};
#pragma unroll 4
  for (int m = 0; m < count + kRun - 1; ++m) {
#pragma unroll
    for (int r = kRun - 1; r > 0; --r) weights[r] = weights[r - 1];
    weights[0] = m < count ? weight(m) : 0.0f;
    step(m, weights);
  }
  if (!folds) return;
#pragma unroll
  for (int r = 0; r < kRun; ++r) {
    if (first + r >= p.height) continue;
    over_copies(first + r, p.height, p.radius, p.boundary, [&](int image) {
      // The result at `image`; summed before it is added, for fewer roundings.
      const int from = image - p.radius, start = from < 0 ? 0 : from;
      const int end = from + count < p.height ? from + count : p.height;
      Four result{};
#pragma unroll 1
      for (int at = start; at < end; ++at) {
        const Four x = load(column + static_cast<std::int64_t>(at) * p.width, span);
        accumulate(weight(at - from), x, result);
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) sum[r].v[c] += result.v[c];
    });
  }
}

__global__ void __launch_bounds__(kTileThreads, kTileResident) blur_kernel(const __grid_constant__ Pass p) {
  float* tile = shared_memory<float>();  // (kColumns, kPitch)
  const int tiles_across = p.tiles_across(), tiles = tiles_across * p.tiles_down();
  const bool whole_in = p.width % 4 == 0 && all_aligned(p.x), whole_out = p.height % 4 == 0 && all_aligned(p.out);
  const std::int64_t size = static_cast<std::int64_t>(p.height) * p.width;
  for (std::int64_t plane = blockIdx.y; plane < p.planes; plane += gridDim.y) {
    for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
      const int top = index / tiles_across * kRows, left = index % tiles_across * kColumns;
      const int column = 4 * (threadIdx.x % (kColumns / 4)), run = kRun * (threadIdx.x / (kColumns / 4));
      if (left + column < p.width && top + run < p.height) {
        const float* x = p.x + plane * size + left + column;
        Four sum[kRun] = {};
        if (whole_in) {
          blur_rows(p, x, top + run, Whole{}, sum);
        } else {
          const int remaining = p.width - left - column;
          blur_rows(p, x, top + run, Part{remaining < 4 ? remaining : 4}, sum);
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          *reinterpret_cast<float4*>(tile + (column + c) * kPitch + run) =
              make_float4(sum[0].v[c], sum[1].v[c], sum[2].v[c], sum[3].v[c]);
        }
      }
      __syncthreads();
      for (int i = threadIdx.x; i < kColumns * (kRows / 4); i += kTileThreads) {
        const int across = i / (kRows / 4), down = 4 * (i % (kRows / 4));
        const int remaining = p.height - top - down;
        if (left + across >= p.width || remaining <= 0) continue;
        float* out = p.out + plane * size + static_cast<std::int64_t>(left + across) * p.height + top + down;
        const float4 column_run = *reinterpret_cast<const float4*>(tile + across * kPitch + down);
        const Four value{{column_run.x, column_run.y, column_run.z, column_run.w}};
        if (whole_out) {
          store(out, value, Whole{});
        } else {
          store(out, value, Part{remaining < 4 ? remaining : 4});
        }
      }
      __syncthreads();
    }
  }
}

void launch_pass(const char* name, const Pass& p, const Queue& queue) {
  constexpr std::size_t kTileBytes = sizeof(float) * kColumns * kPitch;
  const std::int64_t tiles = std::int64_t{p.tiles_across()} * p.tiles_down();
  launch(name, blur_kernel, grid_of(tiles, p.planes, queue), kTileThreads, kTileBytes, queue, p);
}

}  // namespace

void separable_blur(const BlurParams& p) {
  const int height = static_cast<int>(p.height), width = static_cast<int>(p.width);
  launch_pass("separable_blur: columns",
              {p.planes, height, width, static_cast<int>(p.radius_vertical), p.taps_vertical, p.boundary, p.adjoint,
               p.x, p.scratch},
              p.queue);
  launch_pass("separable_blur: rows",
              {p.planes, width, height, static_cast<int>(p.radius_horizontal), p.taps_horizontal, p.boundary, p.adjoint,
               p.scratch, p.out},
              p.queue);
}

}  // namespace RMP_PATH
}  // namespace rmp
