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

  // The words of the elements element, element + 1, ... of the item; `element` is a multiple of 4.
  RMP_INLINE void words(std::int64_t element, Int (&w)[4]) const {
    Words c0 = unpacked(plus_modulo(kOrder, static_cast<std::uint32_t>(element / 4)));
    Words c1 = evaluation, c2 = stream, c3 = spread<Words>(0u);
    philox(keys, c0, c1, c2, c3);
    w[0] = packed(c0), w[1] = packed(c1), w[2] = packed(c2), w[3] = packed(c3);
  }
};

RMP_INLINE void to_normals(const Int (&w)[4], Float (&z)[4]) {
  box_muller(w[0], w[1], z[0], z[1]);
  box_muller(w[2], w[3], z[2], z[3]);
  transpose_quarters(z[0], z[1], z[2], z[3]);
}

constexpr std::int64_t kNormals = 4 * kLanes;

// body(offset, Whole or Part, normals) for the elements first, ..., first + count - 1; `first` is a multiple of 4.
template <class Body>
RMP_INLINE void over_normals(const NormalStream& make, std::int64_t first, std::int64_t count, const Body& body) {
  Float z[4];
  Int now[4], next[4];
  make.words(first, now);
  std::int64_t i = 0;
  for (; i + kNormals <= count; i += kNormals) {
    // Both chains of dependent operations are long; side by side they fill each other's gaps.
    make.words(first + i + kNormals, next);
    to_normals(now, z);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      body(i + k * kLanes, Whole{}, z[k]);
      now[k] = next[k];
    }
  }
  if (i == count) return;
  to_normals(now, z);
  for (int k = 0; k < 4 && i < count; ++k, i += kLanes) body(i, Part{smaller(kLanes, count - i)}, z[k]);
}

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp
