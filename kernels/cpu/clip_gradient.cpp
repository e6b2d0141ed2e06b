// Two passes over the batch: sums of squares by chunks, then the gradients times what follows from them.
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/sums.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

// The sum of squares of one chunk of an item; 0 behind its end, and of null.
double squares_of(const float* x, std::int64_t size, std::int64_t item, std::int64_t chunk) {
  const std::int64_t begin = chunk * kChunk;
  if (!x || begin >= size) return 0.0;
  const float* first = x + item * size + begin;
  return sum_of_products(first, first, smaller(kChunk, size - begin));
}

float scale_of(const ClipParams& p, std::int64_t item) {
  const std::int64_t chunks = p.chunks();
  Squares sum{};
  for (const Squares* s = p.squares + item * chunks; s < p.squares + (item + 1) * chunks; ++s) {
    sum.gradient += s->gradient;
    sum.direction += s->direction;
    sum.residual += s->residual;
  }
  const double limit = p.direction ? p.limit[item] : 0.0, weight = p.direction ? p.weight[item] : 0.0;
  return gradient_scale(sum.gradient, sum.direction, sum.residual, limit, weight);
}

}  // namespace

void clip_gradient(const ClipParams& p) {
  const std::int64_t parts = p.chunks();
  in_parallel(p.items * parts, p.items * parts * kChunk, p.threads, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t unit = first; unit < last; ++unit) {
      const std::int64_t item = unit / parts, chunk = unit % parts;
      p.squares[unit] = {squares_of(p.direction ? p.gradient : nullptr, p.size, item, chunk),
                         squares_of(p.direction, p.size, item, chunk),
                         squares_of(p.residual, p.residual_size, item, chunk)};
    }
  });
  const std::int64_t chunks = ceil_div(p.size, kChunk);
  in_parallel(p.items * chunks, p.items * p.size, p.threads, [&](std::int64_t first, std::int64_t last, int) {
    Float scale{};
    for (std::int64_t unit = first; unit < last; ++unit) {
      const std::int64_t item = unit / chunks, begin = unit % chunks * kChunk, at = item * p.size + begin;
      if (unit == first || begin == 0) scale = spread<Float>(scale_of(p, item));
      over(smaller(kChunk, p.size - begin), [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA {
        store(p.out + at + i, load(p.gradient + at + i, span) * scale, span);
      });
    }
  });
}

}  // namespace RMP_PATH
}  // namespace rmp
