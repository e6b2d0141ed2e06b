#include "kernels/cpu/parallel.h"
#include "kernels/formulas.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

template <class Span>
RMP_INLINE void change(const SpectralParams& p, std::int64_t at, Float energy, Float noise_ratio, Span span) {
  const Float c = load(p.coefficients + at, span);
  const Float delta = spectral_change(c, energy, load(p.data + at, span), noise_ratio);
  store(p.out + at, p.update ? delta : c + delta, span);
}

}  // namespace

void spectral(const SpectralParams& p) {
  const std::int64_t chunks = ceil_div(p.size, kChunk), parts = p.complex ? 2 : 1;
  in_parallel(p.items * chunks, p.items * p.size, p.threads, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t unit = first; unit < last; ++unit) {
      const std::int64_t item = unit / chunks, begin = unit % chunks * kChunk;
      const std::int64_t count = smaller(kChunk, p.size - begin), at = (item * p.size + begin) * parts;
      const float* energy = p.energy + item * p.energy_stride + begin;
      const Float noise_ratio = spread<Float>(p.noise_ratio[item]);
      if (!p.complex) {
        over(count, [&](std::int64_t i, auto span)
                        RMP_INLINE_LAMBDA { change(p, at + i, load(energy + i, span), noise_ratio, span); });
        continue;
      }
      std::int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) {
        const Float e = load(energy + i);
        change(p, at + 2 * i, twice_low(e), noise_ratio, Whole{});
        change(p, at + 2 * i + kLanes, twice_high(e), noise_ratio, Whole{});
      }
      if (i == count) continue;
      const Float e = load(energy + i, Part{count - i});
      const std::int64_t rest = 2 * (count - i);
      change(p, at + 2 * i, twice_low(e), noise_ratio, Part{smaller(kLanes, rest)});
      change(p, at + 2 * i + kLanes, twice_high(e), noise_ratio, Part{larger(rest - kLanes, 0)});
    }
  });
}

}  // namespace RMP_PATH
}  // namespace rmp
