// An item in groups of four elements, one group to a thread: 128-bit accesses where the item begins at a multiple of
// 16 bytes, and four numbers of one Philox counter.
#pragma once

#include "kernels/cuda/scalar.h"
#include "kernels/formulas.h"
#include "kernels/params.h"

namespace rmp {
namespace RMP_PATH {
namespace {

constexpr int kThreads = 256;

struct Four {
  float v[4];
};

// A whole group at an aligned address, or the first `count` of its elements at any.
struct Whole {};
struct Part {
  int count;
};

// Four numbers of global memory at once. By name, because nvcc takes an access of four apart where the other branch of
// a condition makes single ones. Being volatile, these keep their order among themselves.
RMP_DEVICE Four load(const float* p, Whole) {
  Four f;
#if defined(__CUDACC__)
  asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(f.v[0]), "=f"(f.v[1]), "=f"(f.v[2]), "=f"(f.v[3])
               : "l"(__cvta_generic_to_global(p)));
#else
  const float4 q = *reinterpret_cast<const float4*>(p);
  f = {{q.x, q.y, q.z, q.w}};
#endif
  return f;
}
RMP_DEVICE Four load(const float* p, Part part) {
  Four f{};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < part.count) f.v[i] = p[i];
  }
  return f;
}
RMP_DEVICE void store(float* p, const Four& f, Whole) {
#if defined(__CUDACC__)
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "f"(f.v[0]), "f"(f.v[1]),
               "f"(f.v[2]), "f"(f.v[3])
               : "memory");
#else
  *reinterpret_cast<float4*>(p) = make_float4(f.v[0], f.v[1], f.v[2], f.v[3]);
#endif
}
RMP_DEVICE void store(float* p, const Four& f, Part part) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < part.count) p[i] = f.v[i];
  }
}

// Which of the four bytes are not 0, one bit each.
RMP_DEVICE unsigned load_mask(const std::uint8_t* p, Whole) {
  const uchar4 m = *reinterpret_cast<const uchar4*>(p);
  return (m.x != 0) | (m.y != 0) << 1 | (m.z != 0) << 2 | (m.w != 0) << 3;
}
RMP_DEVICE unsigned load_mask(const std::uint8_t* p, Part part) {
  unsigned seen = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < part.count) seen |= static_cast<unsigned>(p[i] != 0) << i;
  }
  return seen;
}

// Whether groups of four may be accessed whole behind all of these. Null is no obstacle.
template <class... T>
RMP_DEVICE bool all_aligned(const T*... p) {
  return ((reinterpret_cast<std::uintptr_t>(p) % (4 * sizeof(T)) == 0) && ...);
}
template <class T>
RMP_DEVICE T* behind(T* p, std::int64_t elements) {
  return p ? p + elements : nullptr;
}

// A flag that several threads may clear: all write the same.
RMP_DEVICE void store_flag(std::uint8_t* p, unsigned char value) { __stwt(p, value); }

// body(at, Whole or Part) for this thread's groups of the elements [first, last) of an item, where block `begin` of
// `stride` blocks takes the first of every `stride` tiles.
template <class Body>
RMP_DEVICE void over_groups(std::int64_t first, std::int64_t last, std::int64_t begin, std::int64_t stride, bool whole,
                            const Body& body) {
  constexpr std::int64_t kTile = 4 * kThreads;
#pragma unroll 1
  for (std::int64_t at = first + begin * kTile + 4 * threadIdx.x; at < last; at += stride * kTile) {
    if (whole && at + 4 <= last) {
      body(at, Whole{});
    } else {
      body(at, Part{static_cast<int>(last - at < 4 ? last - at : 4)});
    }
  }
}
// All groups of an item, shared out over the blocks of a row of the grid.
template <class Body>
RMP_DEVICE void over_groups(std::int64_t size, bool whole, const Body& body) {
  over_groups(0, size, blockIdx.x, gridDim.x, whole, body);
}

// The standard normals of the group at element `at` of an item, a multiple of 4.
RMP_DEVICE Four normals_at(std::int64_t seed, std::uint32_t evaluation, std::uint32_t stream, std::int64_t at) {
  std::uint32_t c0 = static_cast<std::uint32_t>(at / 4), c1 = evaluation, c2 = stream, c3 = 0;
  const auto keys =
      philox_keys<std::uint32_t>(static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
  philox(keys, c0, c1, c2, c3);
  Four z;
  box_muller(static_cast<std::int32_t>(c0), static_cast<std::int32_t>(c1), z.v[0], z.v[1]);
  box_muller(static_cast<std::int32_t>(c2), static_cast<std::int32_t>(c3), z.v[2], z.v[3]);
  return z;
}

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp
