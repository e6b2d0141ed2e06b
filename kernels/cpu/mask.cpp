#include "kernels/cpu/parallel.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {

void mask(const MaskParams& p) {
  const std::int64_t chunks = ceil_div(p.size, kChunk);
  in_parallel(p.items * chunks, p.items * p.size, p.threads, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t unit = first; unit < last; ++unit) {
      const std::int64_t item = unit / chunks, begin = unit % chunks * kChunk;
      const float* x = p.x + item * p.size + begin;
      const std::uint8_t* kept = p.mask + item * p.mask_stride + begin;
      float* out = p.out + item * p.size + begin;
      over(smaller(kChunk, p.size - begin), [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA {
        store(out + i, select(load_mask(kept + i, span), load(x + i, span), Float{}), span);
      });
    }
  });
}

}  // namespace RMP_PATH
}  // namespace rmp
