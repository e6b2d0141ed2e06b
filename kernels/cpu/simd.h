// The vocabulary of ../formulas.h for vectors of RMP_LANES floats. GCC and Clang vector types carry the arithmetic;
// intrinsics appear only where these have no word for what the hardware does in one instruction.
//
// Every file that includes this is compiled once per path, with other instruction sets. All names therefore live in
// namespaces of their own and have internal linkage, and no std:: template is used: the linker would keep one copy of
// it, perhaps the one that the processor cannot run.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#define RMP_INLINE inline __attribute__((always_inline))
#define RMP_INLINE_LAMBDA __attribute__((always_inline))
// For what a tile calls once, so that it is compiled once and not in every form of a kernel.
#define RMP_NOINLINE __attribute__((noinline))

namespace rmp {
namespace RMP_PATH {
namespace {

constexpr std::int64_t kLanes = RMP_LANES;

typedef float Float __attribute__((vector_size(4 * RMP_LANES)));
typedef std::int32_t Int __attribute__((vector_size(4 * RMP_LANES)));
typedef std::uint32_t Word __attribute__((vector_size(4 * RMP_LANES)));
typedef std::uint64_t Long __attribute__((vector_size(4 * RMP_LANES)));
typedef std::uint8_t Bytes __attribute__((vector_size(RMP_LANES)));
typedef double Double __attribute__((vector_size(8 * RMP_LANES)));

// --- Memory: whole vectors, and the remainder padded with zeros into one, so that both see the same arithmetic ------

struct Whole {};
struct Part {
  std::int64_t count;
};

RMP_INLINE Float load(const float* p, Whole = {}) {
  Float v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
RMP_INLINE Float load(const float* p, Part part) {
  Float v{};
  for (std::int64_t i = 0; i < part.count; ++i) v[i] = p[i];
  return v;
}
RMP_INLINE void store(float* p, Float v, Whole = {}) { __builtin_memcpy(p, &v, sizeof v); }
RMP_INLINE void store(float* p, Float v, Part part) {
  for (std::int64_t i = 0; i < part.count; ++i) p[i] = v[i];
}
template <class... T>
RMP_INLINE void prefetch(const T*... p) {
  (__builtin_prefetch(p), ...);
}
// All ones where the byte is not 0.
RMP_INLINE Int load_mask(const std::uint8_t* p, Whole = {}) {
  Bytes v;
  __builtin_memcpy(&v, p, sizeof v);
  // GCC takes the conversion apart byte by byte where the hardware has an instruction for it.
#if defined(__AVX512F__) && RMP_LANES == 16
  return (Int)_mm512_cvtepu8_epi32((__m128i)v) != 0;
#elif defined(__AVX2__) && RMP_LANES == 8
  return (Int)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((std::int64_t)v)) != 0;
#else
  return __builtin_convertvector(v, Int) != 0;
#endif
}
RMP_INLINE Int load_mask(const std::uint8_t* p, Part part) {
  Int v{};
  for (std::int64_t i = 0; i < part.count; ++i) v[i] = p[i] ? -1 : 0;
  return v;
}

// body(offset, Whole or Part) over `count` elements.
template <class Body>
RMP_INLINE void over(std::int64_t count, const Body& body) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, Whole{});
  if (i < count) body(i, Part{count - i});
}

// --- Vocabulary ----------------------------------------------------------------------------------------------------

RMP_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
RMP_INLINE std::int64_t larger(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

RMP_INLINE Int bits(Float v) { return (Int)v; }
RMP_INLINE Float from_bits(Int v) { return (Float)v; }
RMP_INLINE Float to_float(Int v) { return __builtin_convertvector(v, Float); }
RMP_INLINE Double widened(Float v) { return __builtin_convertvector(v, Double); }
RMP_INLINE Float select(Int where, Float yes, Float no) { return where ? yes : no; }
RMP_INLINE float select(bool where, float yes, float no) { return where ? yes : no; }
RMP_INLINE Int minimum(Int a, std::int32_t b) { return a < b ? a : Int{} + b; }
RMP_INLINE Int plus_modulo(Int a, std::uint32_t b) { return (Int)((Word)a + b); }
RMP_INLINE Int shift_right(Int v, int count) { return (Int)((Word)v >> count); }
RMP_INLINE Int is_finite(Float v) { return (bits(v) & 0x7FFFFFFF) < 0x7F800000; }

RMP_INLINE bool any(Int mask) {
#if defined(__AVX512F__) && RMP_LANES == 16
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__) && RMP_LANES == 8
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  std::int32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= mask[i];
  return all != 0;
#endif
}

RMP_INLINE double total(Double v) {
  double sum = 0.0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

#if defined(__AVX2__) && RMP_LANES == 16 && !defined(__AVX512F__)
union Halves {
  Float whole;
  __m256 half[2];
};
#endif

RMP_INLINE Float fused(Float a, Float b, Float c) {
#if defined(__AVX512F__) && RMP_LANES == 16
  return (Float)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && RMP_LANES == 8
  return (Float)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__) && defined(__AVX2__) && RMP_LANES == 16
  const Halves x{a}, y{b};
  Halves z{c};
  for (int i = 0; i < 2; ++i) z.half[i] = _mm256_fmadd_ps(x.half[i], y.half[i], z.half[i]);
  return z.whole;
#else
  return a * b + c;
#endif
}

RMP_INLINE float fused(float a, float b, float c) { return a * b + c; }
// Rounds twice, which is once where the product is exact.
RMP_INLINE Double fused(Double a, Double b, Double c) { return a * b + c; }

RMP_INLINE Float root(Float v) {
#if defined(__AVX512F__) && RMP_LANES == 16
  return (Float)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__) && RMP_LANES == 8
  return (Float)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE2__) && RMP_LANES == 4
  return (Float)_mm_sqrt_ps((__m128)v);
#else
  Float result;
  for (int i = 0; i < kLanes; ++i) result[i] = __builtin_sqrtf(v[i]);
  return result;
#endif
}

RMP_INLINE double root(double v) { return __builtin_sqrt(v); }

// Philox multiplies 32 by 32 bits to 64, which hardware does for every second lane only. So its words stay spread over
// 64-bit lanes through all rounds; the upper halves hold rubbish.
struct Words {
  Long first, second;
};
RMP_INLINE Words operator^(Words a, Words b) { return {a.first ^ b.first, a.second ^ b.second}; }

RMP_INLINE Long product(Long a, std::uint32_t factor) {
#if defined(__AVX512F__) && RMP_LANES == 16
  return (Long)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(factor));
#elif defined(__AVX2__) && RMP_LANES == 8
  return (Long)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(factor));
#elif defined(__SSE2__) && RMP_LANES == 4
  return (Long)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(factor));
#else
  return (a & 0xFFFFFFFFu) * factor;
#endif
}
RMP_INLINE void multiply_wide(Words a, std::uint32_t factor, Words& high, Words& low) {
  low = {product(a.first, factor), product(a.second, factor)};
  high = {low.first >> 32, low.second >> 32};
}
// The words of `even` in the even lanes, those of `odd` in the odd ones.
RMP_INLINE Int joined(Long even, Long odd) {
#if defined(__AVX512F__) && RMP_LANES == 16
  return (Int)_mm512_mask_moveldup_ps((__m512)even, 0xAAAA, (__m512)odd);
#elif defined(__AVX2__) && RMP_LANES == 8
  return (Int)_mm256_blend_epi32((__m256i)even, (__m256i)(odd << 32), 0xAA);
#else
  return (Int)((even & 0xFFFFFFFFu) | (odd << 32));
#endif
}

template <class T>
RMP_INLINE T spread(float value) {
  return value - T{};  // not T{} + value, which -0 would forbid the compiler to drop
}
template <class T>
RMP_INLINE T spread(std::uint32_t value) {
  return {Long{} + value, Long{} + value};
}

// --- Rearrangements --------------------------------------------------------------------------------------------------

// Lane 2q + r of the first words of Philox blocks holds block kOrder[2q + r] = (lanes / 4) r + q, the second words go
// on after them: then interleaving quarters, which is cheap, yields the four numbers of all blocks in their order in
// memory.
#if RMP_LANES == 16
constexpr Long kOrder = {0, 4, 1, 5, 2, 6, 3, 7};
#elif RMP_LANES == 8
constexpr Long kOrder = {0, 2, 1, 3};
#else
constexpr Long kOrder = {0, 1};
#endif

#if RMP_LANES == 16
#define RMP_IN_QUARTERS(x, y, a, b, c, d)                                                                           \
  __builtin_shufflevector(x, y, a, b, c, d, a + 4, b + 4, c + 4, d + 4, a + 8, b + 8, c + 8, d + 8, a + 12, b + 12, \
                          c + 12, d + 12)
#elif RMP_LANES == 8
#define RMP_IN_QUARTERS(x, y, a, b, c, d) __builtin_shufflevector(x, y, a, b, c, d, a + 4, b + 4, c + 4, d + 4)
#else
#define RMP_IN_QUARTERS(x, y, a, b, c, d) __builtin_shufflevector(x, y, a, b, c, d)
#endif

RMP_INLINE void interleave_quarters(Float& v0, Float& v1) {
  constexpr int n = RMP_LANES;
  const Float low = RMP_IN_QUARTERS(v0, v1, 0, n, 1, n + 1);
  v1 = RMP_IN_QUARTERS(v0, v1, 2, n + 2, 3, n + 3);
  v0 = low;
}

RMP_INLINE void transpose_quarters(Float& v0, Float& v1, Float& v2, Float& v3) {
  constexpr int n = RMP_LANES;
  const Float low01 = RMP_IN_QUARTERS(v0, v1, 0, n, 1, n + 1);
  const Float high01 = RMP_IN_QUARTERS(v0, v1, 2, n + 2, 3, n + 3);
  const Float low23 = RMP_IN_QUARTERS(v2, v3, 0, n, 1, n + 1);
  const Float high23 = RMP_IN_QUARTERS(v2, v3, 2, n + 2, 3, n + 3);
  v0 = RMP_IN_QUARTERS(low01, low23, 0, 1, n, n + 1);
  v1 = RMP_IN_QUARTERS(low01, low23, 2, 3, n + 2, n + 3);
  v2 = RMP_IN_QUARTERS(high01, high23, 0, 1, n, n + 1);
  v3 = RMP_IN_QUARTERS(high01, high23, 2, 3, n + 2, n + 3);
}

#undef RMP_IN_QUARTERS

// Quarter q of the vector to and from p + q * stride.
RMP_INLINE void store_quarters(float* p, std::int64_t stride, Float v) {
  for (int q = 0; q < RMP_LANES / 4; ++q) __builtin_memcpy(p + q * stride, (const float*)&v + 4 * q, 16);
}
RMP_INLINE Float load_quarters(const float* p, std::int64_t stride) {
  typedef float Quarter __attribute__((vector_size(16)));
  Quarter v[RMP_LANES / 4];
  for (int q = 0; q < RMP_LANES / 4; ++q) __builtin_memcpy(&v[q], p + q * stride, 16);
#if RMP_LANES == 16
  const auto low = __builtin_shufflevector(v[0], v[1], 0, 1, 2, 3, 4, 5, 6, 7);
  const auto high = __builtin_shufflevector(v[2], v[3], 0, 1, 2, 3, 4, 5, 6, 7);
  return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#elif RMP_LANES == 8
  return __builtin_shufflevector(v[0], v[1], 0, 1, 2, 3, 4, 5, 6, 7);
#else
  return v[0];
#endif
}

#if RMP_LANES == 16
#define RMP_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define RMP_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define RMP_TWICE_LOW 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7
#define RMP_TWICE_HIGH 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15
#define RMP_ALTERNATING_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define RMP_ALTERNATING_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define RMP_BACKWARDS 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0
#elif RMP_LANES == 8
#define RMP_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define RMP_ODD 1, 3, 5, 7, 9, 11, 13, 15
#define RMP_TWICE_LOW 0, 0, 1, 1, 2, 2, 3, 3
#define RMP_TWICE_HIGH 4, 4, 5, 5, 6, 6, 7, 7
#define RMP_ALTERNATING_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define RMP_ALTERNATING_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define RMP_BACKWARDS 7, 6, 5, 4, 3, 2, 1, 0
#else
#define RMP_EVEN 0, 2, 4, 6
#define RMP_ODD 1, 3, 5, 7
#define RMP_TWICE_LOW 0, 0, 1, 1
#define RMP_TWICE_HIGH 2, 2, 3, 3
#define RMP_ALTERNATING_LOW 0, 4, 1, 5
#define RMP_ALTERNATING_HIGH 2, 6, 3, 7
#define RMP_BACKWARDS 3, 2, 1, 0
#endif

// The even and the odd numbers of the 2 * lanes in a, b.
RMP_INLINE Float evens(Float a, Float b) { return __builtin_shufflevector(a, b, RMP_EVEN); }
RMP_INLINE Float odds(Float a, Float b) { return __builtin_shufflevector(a, b, RMP_ODD); }
// The other way round: the first and the last of the 2 * lanes numbers that take turns.
RMP_INLINE Float alternating_low(Float even, Float odd) {
  return __builtin_shufflevector(even, odd, RMP_ALTERNATING_LOW);
}
RMP_INLINE Float alternating_high(Float even, Float odd) {
  return __builtin_shufflevector(even, odd, RMP_ALTERNATING_HIGH);
}
// Sums of neighbours of the 2 * lanes numbers in a, b.
RMP_INLINE Float neighbour_sums(Float a, Float b) { return evens(a, b) + odds(a, b); }
// Every number twice: once for the real and once for the imaginary part.
RMP_INLINE Float twice_low(Float v) { return __builtin_shufflevector(v, v, RMP_TWICE_LOW); }
RMP_INLINE Float twice_high(Float v) { return __builtin_shufflevector(v, v, RMP_TWICE_HIGH); }

RMP_INLINE Float backwards(Float v) { return __builtin_shufflevector(v, v, RMP_BACKWARDS); }
// Numbers at p, p - 1, ..., in this order; of a part the first alone.
RMP_INLINE Float load_backwards(const float* p, Whole = {}) { return backwards(load(p - kLanes + 1)); }
RMP_INLINE Float load_backwards(const float* p, Part) { return load(p, Part{1}); }
RMP_INLINE void store_backwards(float* p, Float v, Whole = {}) { store(p - kLanes + 1, backwards(v)); }
RMP_INLINE void store_backwards(float* p, Float v, Part) { store(p, v, Part{1}); }

#undef RMP_EVEN
#undef RMP_ODD
#undef RMP_TWICE_LOW
#undef RMP_TWICE_HIGH
#undef RMP_ALTERNATING_LOW
#undef RMP_ALTERNATING_HIGH
#undef RMP_BACKWARDS

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp
