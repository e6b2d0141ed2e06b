#include "kernels/cpu/normals.h"

#include "kernels/cpu/parallel.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {

void normals(const NormalsParams& p) {
  const std::int64_t chunks = ceil_div(p.size, kChunk);
  in_parallel(p.items * chunks, p.items * p.size, p.threads, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t unit = first; unit < last; ++unit) {
      const std::int64_t item = unit / chunks, begin = unit % chunks * kChunk;
      const NormalStream make(p.seeds[item], p.evaluation, p.stream);
      float* out = p.out + item * p.size + begin;
      over_normals(make, begin, smaller(kChunk, p.size - begin),
                   [&](std::int64_t i, auto span, Float z) RMP_INLINE_LAMBDA { store(out + i, z, span); });
    }
  });
}

void philox(std::uint32_t counter[4], const std::uint32_t key[2]) {
  Words c[4];
  for (int i = 0; i < 4; ++i) c[i] = spread<Words>(counter[i]);
  philox(philox_keys<Words>(key[0], key[1]), c[0], c[1], c[2], c[3]);
  // Both halves are computed; both must be right.
  for (int i = 0; i < 4; ++i) counter[i] = static_cast<std::uint32_t>(c[i].second[kLanes / 2 - 1]);
}

}  // namespace RMP_PATH
}  // namespace rmp
