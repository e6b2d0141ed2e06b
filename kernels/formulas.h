// The formulas, stated once for C++ and CUDA. They are written in a small vocabulary (fused, root, select, minimum,
// plus_modulo, shift_right, bits, from_bits, to_float, spread, multiply_wide), which each backend defines for its own
// types before it includes this file: vectors in cpu/simd.h, plain numbers on a GPU. RMP_PATH is the namespace of that
// backend.
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
template <class F>
RMP_FORMULA F precision_ratio(F share, F curvature) {
  const F least = spread<F>(0.25f), most = spread<F>(4.0f), one = spread<F>(1.0f);
  const F slope = one - share * curvature;
  return one / select(slope < least, least, select(slope > most, most, slope));
}

// j <- (1 - rate) j + rate seen.
template <class F>
RMP_FORMULA F learned(F curvature, F seen, F rate) {
  return fused(rate, seen - curvature, curvature);
}

// --- Sums over items -----------------------------------------------------------------------------------------------

// A sum of products and one more. The product of two floats is exact in double, and always in range.
template <class D, class F>
RMP_FORMULA D plus_product(D sum, F a, F b) {
  return fused(widened(a), widened(b), sum);
}
template <class D, class F>
RMP_FORMULA D plus_square(D sum, F value) {
  const D wide = widened(value);
  return fused(wide, wide, sum);
}

// --- Gradients -----------------------------------------------------------------------------------------------------

// What a gradient is multiplied by, from sums of squares: 1 / |residual|, and no more than what makes `weight` times
// the result as long as `limit` |direction|. A residual of norm 0 divides nothing, and where there is no length there
// is none to hold. What is not a number stays so, and the least residuals do not make it infinite.
template <class D>
RMP_FORMULA float gradient_scale(D gradient, D direction, D residual, D limit, D weight) {
  constexpr float kLargest = 3.40282347e+38f;
  const D norm = residual == 0.0 ? 1.0 : root(residual);
  const D length = weight * root(gradient) / norm, most = limit * root(direction);
  const D scale = (length > 0.0 && !(most >= length) ? most / length : 1.0) / norm;
  return scale > static_cast<D>(kLargest) ? kLargest : static_cast<float>(scale);
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

// All rounds, or those from kFirst until before kLast.
template <int kFirst = 0, int kLast = 10, class W>
RMP_FORMULA void philox(const PhiloxKeys<W>& keys, W& c0, W& c1, W& c2, W& c3) {
#pragma GCC unroll 10
  for (int round = kFirst; round < kLast; ++round) {
    W high0, low0, high2, low2;
    multiply_wide(c0, 0xD2511F53u, high0, low0);
    multiply_wide(c2, 0xCD9E8D57u, high2, low2);
    c0 = high2 ^ c1 ^ keys.low[round];
    c1 = low2;
    c2 = high0 ^ c3 ^ keys.high[round];
    c3 = low0;
  }
}

// The uniform number of a word is u = (word >> 8) 2^-24 + 2^-25, that is, turn(word) 2^-32 modulo 1. It has 25 bits,
// one more than a float; but read as a signed number, so u or u - 1, it converts without rounding.
template <class I>
RMP_FORMULA I turn(I word) {
  return (word & ~0xFF) | 0x80;
}

// sqrt(-2 ln u). Write u = 2^e (1 + f) with f in [-1/2, 0); then -2 ln u = -2 ln 2 e - 2 f + f^2 P(f), a sum of terms
// of one sign, so that it keeps its digits near u = 1, where it is about -2 (u - 1). P is a minimax polynomial of
// relative error 2.4e-8.
template <class F, class I>
RMP_FORMULA F normal_radius(I word) {
  const I u = turn(word);
  const F value = to_float(u);
  const I raw = bits(value);
  // u >= 1/2 came as u - 1 = f with e = 0, and its sign bit makes the exponent below positive.
  const F f = select(u < 0, value * 0x1p-32f, from_bits((raw & 0x7FFFFF) | 0x3F000000) - spread<F>(1.0f));
  const F e = to_float(minimum(shift_right(raw, 23) - 158, 0));
  const F z = f * f;
  const F p01 = fused(f, spread<F>(-0.66726422309875488f), spread<F>(0.99999046325683594f));
  const F p23 = fused(f, spread<F>(-0.52737915515899658f), spread<F>(0.48736554384231567f));
  const F p45 = fused(f, spread<F>(-2.4173991680145264f), spread<F>(-0.36189264059066772f));
  const F p67 = fused(f, spread<F>(-2.8290777206420898f), spread<F>(-3.2791438102722168f));
  const F p = fused(z * z, fused(z, p67, p45), fused(z, p23, p01));
  return root(fused(z, p, fused(f, spread<F>(-2.0f), e * -1.38629436111989062f)));
}

// scale cos(2 pi u) and scale sin(2 pi u). Half a turn changes only the sign, so the angle x is reduced to
// [-pi/2, pi/2], exactly, in integers. Minimax polynomials of error 5e-9 and 3e-10.
template <class F, class I>
RMP_FORMULA void cosine_sine(I word, F scale, F& cosine, F& sine) {
  constexpr float kTurn = 6.28318530717958648f * 0x1p-32f;
  const I u = turn(word);
  const I half = plus_modulo(u, 1 << 30) & INT32_MIN;
  const F x = to_float(u ^ half) * kTurn;
  const F z = x * x;
  F s = fused(z, spread<F>(2.6000539037340786e-6f), spread<F>(-1.9806614727713168e-4f));
  s = fused(s, z, spread<F>(8.3330171182751656e-3f));
  s = fused(s, z, spread<F>(-0.16666656732559204f));
  F c = fused(z, spread<F>(-2.607710030133603e-7f), spread<F>(2.4761886379565112e-5f));
  c = fused(c, z, spread<F>(-1.38884037733078e-3f));
  c = fused(c, z, spread<F>(0.04166664183139801f));
  c = fused(c, z, spread<F>(-0.5f));
  const F signed_scale = from_bits(bits(scale) ^ half);
  cosine = fused(c, z, spread<F>(1.0f)) * signed_scale;
  sine = fused(s * z, x, x) * signed_scale;
}

// Two words of Philox to two independent standard normals.
template <class F, class I>
RMP_FORMULA void box_muller(I word0, I word1, F& z0, F& z1) {
  cosine_sine(word1, normal_radius<F>(word0), z0, z1);
}

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp
