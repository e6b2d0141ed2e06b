// out = plus + weight L L x, with L x the sum of every pixel's differences from its neighbours: L L x is the gradient
// of |L x|^2 / 2. Beyond the edge images, and L x, go on flat.
#include "kernels/cpu/parallel.h"
#include "kernels/formulas.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

// Rows of an image that are done at once; four more are looked at.
constexpr std::int64_t kBand = 32;

// Rows i - 1, i and i + 1 of an image, with a pixel more on either side and rubbish behind that.
class Rows {
 public:
  Rows(float* memory, std::int64_t height, std::int64_t width)
      : first_(memory + kSlack / 2), height_(height), width_(width) {}

  float* at(std::int64_t i) const { return first_ + i % 3 * (width_ + kSlack); }
  float* close(std::int64_t i) const {
    float* const row = at(i);
    row[-1] = row[0];
    row[width_] = row[width_ - 1];
    return row;
  }
  // L of row i from column j on.
  RMP_INLINE Float laplacian(std::int64_t i, std::int64_t j) const {
    const float* const row = at(i) + j;
    const Float here = load(row);
    const Float above = load(at(larger(i - 1, 0)) + j), below = load(at(smaller(i + 1, height_ - 1)) + j);
    return ((above - here) + (below - here)) + ((load(row - 1) - here) + (load(row + 1) - here));
  }

 private:
  float* first_;
  std::int64_t height_, width_;
};

}  // namespace

void biharmonic(const BiharmonicParams& p) {
  const std::int64_t h = p.height, w = p.width, bands = ceil_div(h, kBand);
  const Float weight = spread<Float>(p.weight);
  in_parallel(p.planes * bands, p.planes * h * w, p.threads, [&](std::int64_t first, std::int64_t last, int thread) {
    float* const memory = p.scratch + thread * BiharmonicParams::scratch_size(w);
    const Rows images(memory, h, w), differences(memory + BiharmonicParams::scratch_size(w) / 2, h, w);
    for (std::int64_t unit = first; unit < last; ++unit) {
      const std::int64_t plane = unit / bands * h * w, begin = unit % bands * kBand, end = smaller(begin + kBand, h);
      const std::int64_t above = larger(begin - 1, 0);
      const auto take = [&](std::int64_t i) {
        __builtin_memcpy(images.at(i), p.x + plane + i * w, static_cast<std::size_t>(w) * sizeof(float));
        images.close(i);
      };
      const auto differ = [&](std::int64_t i) {
        if (i + 1 < h) take(i + 1);
        float* const row = differences.at(i);
        for (std::int64_t j = 0; j < w; j += kLanes) store(row + j, images.laplacian(i, j));
        differences.close(i);
      };
      for (std::int64_t i = larger(above - 1, 0); i <= above; ++i) take(i);
      for (std::int64_t i = above; i <= begin; ++i) differ(i);
      for (std::int64_t i = begin; i < end; ++i) {
        if (i + 1 < h) differ(i + 1);
        const std::int64_t row = plane + i * w;
        over(w, [&](std::int64_t j, auto span) RMP_INLINE_LAMBDA {
          const Float added = load(p.plus + row + j, span);
          store(p.out + row + j, fused(weight, differences.laplacian(i, j), added), span);
        });
      }
    }
  });
}

}  // namespace RMP_PATH
}  // namespace rmp
