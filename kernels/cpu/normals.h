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

  // The counters of the elements element, element + 1, ... of the item; `element` is a multiple of 4.
  RMP_INLINE void counters(std::int64_t element, Words (&c)[4]) const {
    const Long block = kOrder + static_cast<std::uint64_t>(element / 4);
    c[0] = {block, block + kLanes / 2};
    c[1] = evaluation, c[2] = stream, c[3] = spread<Words>(0u);
  }
  template <int kFirst, int kLast>
  RMP_INLINE void rounds(Words (&c)[4]) const {
    philox<kFirst, kLast>(keys, c[0], c[1], c[2], c[3]);
  }
};

// Words for Box-Muller, the two pairs of a block side by side.
RMP_INLINE void join(const Words (&c)[4], Int (&w)[4]) {
  w[0] = joined(c[0].first, c[2].first), w[1] = joined(c[1].first, c[3].first);
  w[2] = joined(c[0].second, c[2].second), w[3] = joined(c[1].second, c[3].second);
}

template <int k>
RMP_INLINE void pair_normals(const Int (&w)[4], Float radius, Float (&z)[4]) {
  cosine_sine(w[k + 1], radius, z[k], z[k + 1]);
  interleave_quarters(z[k], z[k + 1]);
}

RMP_INLINE void to_normals(const Int (&w)[4], Float (&z)[4]) {
  pair_normals<0>(w, normal_radius<Float>(w[0]), z);
  pair_normals<2>(w, normal_radius<Float>(w[2]), z);
}

// Turns the words into normals and replaces them with those of `element`. Both are long chains of dependent operations,
// which fill each other's gaps.
RMP_INLINE void exchange(const NormalStream& make, std::int64_t element, Int (&w)[4], Float (&z)[4]) {
  Words c[4];
  make.counters(element, c);
#if defined(__AVX512F__)
  // In turns, because either chain alone is about as long as the processor looks ahead.
  make.rounds<0, 3>(c);
  const Float radius0 = normal_radius<Float>(w[0]);
  make.rounds<3, 5>(c);
  pair_normals<0>(w, radius0, z);
  make.rounds<5, 8>(c);
  const Float radius2 = normal_radius<Float>(w[2]);
  make.rounds<8, 10>(c);
  pair_normals<2>(w, radius2, z);
  join(c, w);
#else
  // Too few registers to take turns.
  Int next[4];
  make.rounds<0, 10>(c);
  join(c, next);
  to_normals(w, z);
  for (int k = 0; k < 4; ++k) w[k] = next[k];
#endif
}

constexpr std::int64_t kNormals = 4 * kLanes;

// body(offset, Whole or Part, normals) for the elements first, ..., first + count - 1; `first` is a multiple of 4.
template <class Body>
RMP_INLINE void over_normals(const NormalStream& make, std::int64_t first, std::int64_t count, const Body& body) {
  Float z[4];
  Int words[4];
  Words c[4];
  make.counters(first, c);
  make.rounds<0, 10>(c);
  join(c, words);
  std::int64_t i = 0;
  for (; i + kNormals <= count; i += kNormals) {
    exchange(make, first + i + kNormals, words, z);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) body(i + k * kLanes, Whole{}, z[k]);
  }
  if (i == count) return;
  to_normals(words, z);
  for (int k = 0; k < 4 && i < count; ++k, i += kLanes) body(i, Part{smaller(kLanes, count - i)}, z[k]);
}

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp
