// Standard normals of an item, 4 * kLanes at a time.
#pragma once

#include "kernels/cpu/simd.h"
#include "kernels/formulas.h"
#include "kernels/params.h"

namespace rmp {
namespace RMP_PATH {
namespace {

struct NormalStream {
  PhiloxKeys<Words> keys;
  Words evaluation, stream;

  RMP_INLINE NormalStream(std::int64_t seed, std::uint32_t evaluation_index, std::uint32_t stream_index)
      : keys(philox_keys<Words>(static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32))),
        evaluation(spread<Words>(evaluation_index)),
        stream(spread<Words>(stream_index)) {}

  // Elements element, element + 1, ... of the item; `element` is a multiple of 4.
  RMP_INLINE void operator()(std::int64_t element, Float& z0, Float& z1, Float& z2, Float& z3) const {
    Words c0 = unpacked(kOrder + static_cast<std::int32_t>(element / 4));
    Words c1 = evaluation, c2 = stream, c3 = spread<Words>(0u);
    philox(keys, c0, c1, c2, c3);
    box_muller<Float>(packed(c0), packed(c1), z0, z1);
    box_muller<Float>(packed(c2), packed(c3), z2, z3);
    transpose_quarters(z0, z1, z2, z3);
  }
};

constexpr std::int64_t kNormals = 4 * kLanes;

// body(offset, Whole or Part, normals) for the elements first, ..., first + count - 1; `first` is a multiple of 4.
template <class Body>
RMP_INLINE void over_normals(const NormalStream& make, std::int64_t first, std::int64_t count, const Body& body) {
  Float z[4];
  std::int64_t i = 0;
  for (; i + kNormals <= count; i += kNormals) {
    make(first + i, z[0], z[1], z[2], z[3]);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) body(i + k * kLanes, Whole{}, z[k]);
  }
  if (i == count) return;
  make(first + i, z[0], z[1], z[2], z[3]);
  for (int k = 0; k < 4 && i < count; ++k, i += kLanes) body(i, Part{smaller(kLanes, count - i)}, z[k]);
}

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp
