// The formulas, stated once for C++ and CUDA. They are written in a small vocabulary (fused, root, select, bits,
// from_bits, to_float, spread, multiply_wide), which each backend defines for its own types before it includes this
// file: vectors in cpu/simd.h, plain numbers on a GPU. RMP_PATH is the namespace of that backend.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define RMP_FORMULA __host__ __device__ __forceinline__
#else
#define RMP_FORMULA inline __attribute__((always_inline))
#endif

namespace rmp {
namespace RMP_PATH {
namespace {

// --- The step ------------------------------------------------------------------------------------------------------

// The natural-gradient step; the weights are to_previous and to_denoised, times the precision ratio.
template <class F>
RMP_FORMULA F stepped(F mean, F previous, F point, F denoised, F to_previous, F to_denoised) {
  return fused(to_previous, previous - point, fused(to_denoised, denoised - point, mean));
}

// d + (y - d) / (1 + q), gain = 1 / (1 + q).
template <class F>
RMP_FORMULA F conditioned(F denoised, F measured, F gain) {
  return fused(gain, measured - denoised, denoised);
}

// (b - h2 c) / (h2 + q), the change of one spectral coefficient. Where nothing is measured and nothing is noisy the
// numerator is zero too, and the floor makes the change zero instead of 0 / 0.
template <class F>
RMP_FORMULA F spectral_change(F coefficient, F energy, F data, F noise_ratio) {
  constexpr float kTiny = 1e-30f;
  const F total = energy + noise_ratio;
  const F floor = spread<F>(kTiny);
  return fused(spread<F>(0.0f) - energy, coefficient, data) / select(total > floor, total, floor);
}

// v / v_fixed = 1 / (1 - share * curvature), kept inside [1/4, 4].
RMP_FORMULA float precision_ratio(float share, float curvature) {
  const float slope = 1.0f - share * curvature;
  return 1.0f / (slope < 0.25f ? 0.25f : slope > 4.0f ? 4.0f : slope);
}

// --- Normals: Philox4x32-10 (Salmon et al., SC 2011, as in Random123) and Box-Muller ---------------------------------

template <class W>
struct PhiloxKeys {
  W low[10], high[10];
};

template <class W>
RMP_FORMULA PhiloxKeys<W> philox_keys(std::uint32_t low, std::uint32_t high) {
  PhiloxKeys<W> keys;
  for (std::uint32_t round = 0; round < 10; ++round) {
    keys.low[round] = spread<W>(low + round * 0x9E3779B9u);
    keys.high[round] = spread<W>(high + round * 0xBB67AE85u);
  }
  return keys;
}

template <class W>
RMP_FORMULA void philox(const PhiloxKeys<W>& keys, W& c0, W& c1, W& c2, W& c3) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    W high0, low0, high2, low2;
    multiply_wide(c0, 0xD2511F53u, high0, low0);
    multiply_wide(c2, 0xCD9E8D57u, high2, low2);
    c0 = high2 ^ c1 ^ keys.low[round];
    c1 = low2;
    c2 = high0 ^ c3 ^ keys.high[round];
    c3 = low0;
  }
}

// sqrt(-2 ln u) for u = n 2^-25, n odd. The logarithm's polynomial is that of Cephes' logf (Moshier), on
// [sqrt 1/2, sqrt 2).
template <class F, class I>
RMP_FORMULA F normal_radius(I n) {
  const I raw = bits(to_float(n));
  const I exponent = (raw - 0x3F3504F3) >> 23;
  // From 2^24 on n has 25 bits and to_float rounds it. Near u = 1, where ln u is about u - 1, that would cost all
  // digits; n - 2^25 is exact there.
  const F near_one = to_float(n - (1 << 25)) * 0x1p-25f;
  const F f = select(exponent == 25, near_one, from_bits(raw - (exponent << 23)) - spread<F>(1.0f));
  const F e = to_float(exponent - 25);
  const F z = f * f;
  F p = fused(f, spread<F>(7.0376836292e-2f), spread<F>(-1.1514610310e-1f));
  p = fused(p, f, spread<F>(1.1676998740e-1f));
  p = fused(p, f, spread<F>(-1.2420140846e-1f));
  p = fused(p, f, spread<F>(1.4249322787e-1f));
  p = fused(p, f, spread<F>(-1.6668057665e-1f));
  p = fused(p, f, spread<F>(2.0000714765e-1f));
  p = fused(p, f, spread<F>(-2.4999993993e-1f));
  p = fused(p, f, spread<F>(3.3333331174e-1f));
  p = p * f * z;
  p = fused(e, spread<F>(-2.12194440e-4f), p);
  p = fused(z, spread<F>(-0.5f), p);
  return root(fused(e, spread<F>(0.693359375f), f + p) * -2.0f);
}

// cos and sin of 2 pi u for u = n 2^-25; the reduction to an eighth of a turn is exact, in integers. Polynomials of
// Cephes' sinf and cosf.
template <class F, class I>
RMP_FORMULA void turn(I n, F& cosine, F& sine) {
  constexpr float kQuarterTurn = 1.57079632679489661923f * 0x1p-23f;
  const I quarter = (n + (1 << 22)) >> 23;
  const F x = to_float(n - (quarter << 23)) * kQuarterTurn;
  const F z = x * x;
  F s = fused(z, spread<F>(-1.9515295891e-4f), spread<F>(8.3321608736e-3f));
  s = fused(s, z, spread<F>(-1.6666654611e-1f));
  s = fused(s * z, x, x);
  F c = fused(z, spread<F>(2.443315711809948e-5f), spread<F>(-1.388731625493765e-3f));
  c = fused(c, z, spread<F>(4.166664568298827e-2f));
  c = fused(c, z, spread<F>(-0.5f));
  c = fused(c, z, spread<F>(1.0f));
  const auto odd = (quarter << 31) < 0;
  cosine = from_bits(bits(select(odd, s, c)) ^ (((quarter + 1) & 2) << 30));
  sine = from_bits(bits(select(odd, c, s)) ^ ((quarter & 2) << 30));
}

// Two words of Philox to two independent standard normals.
template <class F, class I>
RMP_FORMULA void box_muller(I word0, I word1, F& z0, F& z1) {
  // u = (bits >> 8) 2^-24 + 2^-25 = n 2^-25
  const F radius = normal_radius<F>(I(((word0 >> 7) & 0x1FFFFFF) | 1));
  F cosine, sine;
  turn<F>(I(((word1 >> 7) & 0x1FFFFFF) | 1), cosine, sine);
  z0 = radius * cosine;
  z1 = radius * sine;
}

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp
