// What a cosine transform by FFT does beside the FFT (Makhoul, "A fast cosine transform in one and two dimensions",
// IEEE Trans. ASSP 28, 1980): its samples are the even ones followed by the odd ones backwards, v = (x0 x2 x4 ... x5 x3
// x1), and its coefficients are parts of the spectrum of v, turned.
#include "kernels/cpu/parallel.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

// Where sample i of an axis of n is put.
RMP_INLINE std::int64_t folded(std::int64_t i, std::int64_t n) { return i % 2 == 0 ? i / 2 : n - (i + 1) / 2; }

RMP_INLINE void fold_row(const float* x, float* v, std::int64_t n) {
  std::int64_t i = 0;
  for (; 2 * (i + kLanes) <= n; i += kLanes) {
    const Float low = load(x + 2 * i), high = load(x + 2 * i + kLanes);
    store(v + i, evens(low, high));
    store(v + n - i - kLanes, backwards(odds(low, high)));
  }
  for (; 2 * i < n; ++i) {
    v[i] = x[2 * i];
    if (2 * i + 1 < n) v[n - 1 - i] = x[2 * i + 1];
  }
}

RMP_INLINE void unfold_row(const float* v, float* x, std::int64_t n) {
  std::int64_t i = 0;
  for (; 2 * (i + kLanes) <= n; i += kLanes) {
    const Float even = load(v + i), odd = backwards(load(v + n - i - kLanes));
    store(x + 2 * i, alternating_low(even, odd));
    store(x + 2 * i + kLanes, alternating_high(even, odd));
  }
  for (; 2 * i < n; ++i) {
    x[2 * i] = v[i];
    if (2 * i + 1 < n) x[2 * i + 1] = v[n - 1 - i];
  }
}

struct Complex {
  Float real, imaginary;
};

RMP_INLINE Complex operator*(Complex a, Complex b) {
  return {fused(a.real, b.real, spread<Float>(0.0f) - a.imaginary * b.imaginary),
          fused(a.real, b.imaginary, a.imaginary * b.real)};
}
RMP_INLINE Complex load_complex(const float* p, Whole) {
  const Float low = load(p), high = load(p + kLanes);
  return {evens(low, high), odds(low, high)};
}
// Of a part the first number alone, here and below.
RMP_INLINE Complex load_complex(const float* p, Part) { return {load(p, Part{1}), load(p + 1, Part{1})}; }
RMP_INLINE void store_complex(float* p, Complex v, Whole) {
  store(p, alternating_low(v.real, v.imaginary));
  store(p + kLanes, alternating_high(v.real, v.imaginary));
}
RMP_INLINE void store_complex(float* p, Complex v, Part) {
  store(p, v.real, Part{1});
  store(p + 1, v.imaginary, Part{1});
}

// Rows k and height - k of one plane, both the same where `single`.
struct Rows {
  float *spectrum, *other_spectrum;
  float *coefficients, *other_coefficients;
  Complex turn;
  bool single;
  bool first;  // k = 0
};

// With V the spectrum and w the turns, U = w(column) V holds the transforms A of column l and B of column width - l as
// U[k] = A - i B and U[-k] = conj(A + i B), and the coefficients are the real and, backwards, the negative imaginary
// parts of w(row) A and w(row) B.
template <class Span>
RMP_INLINE void turn(const CosineTurnParams& p, const Rows& rows, std::int64_t l, Complex column, Span span) {
  const Complex u = column * load_complex(rows.spectrum + 2 * l, span);
  const Complex other = column * load_complex(rows.other_spectrum + 2 * l, span);
  const Complex a = rows.turn * Complex{u.real + other.real, u.imaginary - other.imaginary};
  const Complex b = rows.turn * Complex{spread<Float>(0.0f) - (u.imaginary + other.imaginary), u.real - other.real};
  const std::int64_t mirrored = p.width - l;
  const auto put = [&](float* row, Float forwards, Float back) RMP_INLINE_LAMBDA {
    store(row + l, forwards, span);
    if (l > 0) store_backwards(row + mirrored, back, span);
  };
  put(rows.coefficients, a.real, b.real);
  if (rows.single) return;
  const Float zero{};
  put(rows.other_coefficients, zero - a.imaginary, zero - b.imaginary);
}

// The same from the coefficients to the spectrum; the turns are the reciprocals of those.
template <class Span>
RMP_INLINE void turn_back(const CosineTurnParams& p, const Rows& rows, std::int64_t l, Complex column, Span span) {
  const Float zero{};
  const std::int64_t mirrored = p.width - l;
  const auto get = [&](Float forwards, Float back)
                       RMP_INLINE_LAMBDA { return rows.turn * Complex{forwards, zero - back}; };
  const Complex a = get(load(rows.coefficients + l, span), rows.first ? zero : load(rows.other_coefficients + l, span));
  Complex b{zero, zero};
  if (l > 0) {
    b = get(load_backwards(rows.coefficients + mirrored, span),
            rows.first ? zero : load_backwards(rows.other_coefficients + mirrored, span));
  }
  store_complex(rows.spectrum + 2 * l, column * Complex{a.real + b.imaginary, a.imaginary - b.real}, span);
  if (rows.single) return;
  store_complex(rows.other_spectrum + 2 * l, column * Complex{a.real - b.imaginary, zero - (a.imaginary + b.real)},
                span);
}

}  // namespace

void cosine_fold(const CosineFoldParams& p) {
  in_parallel(p.planes * p.height, p.planes * p.height * p.width, p.threads,
              [&](std::int64_t first, std::int64_t last, int) {
                for (std::int64_t unit = first; unit < last; ++unit) {
                  const std::int64_t plane = unit / p.height, i = unit % p.height;
                  const std::int64_t image = unit * p.width;
                  const std::int64_t other = (plane * p.height + folded(i, p.height)) * p.width;
                  if (p.inverse) {
                    unfold_row(p.x + other, p.out + image, p.width);
                  } else {
                    fold_row(p.x + image, p.out + other, p.width);
                  }
                }
              });
}

void cosine_turn(const CosineTurnParams& p) {
  const std::int64_t pairs = p.height / 2 + 1, columns = p.width / 2 + 1;
  const auto column_turn = [&](std::int64_t l, auto span)
                               RMP_INLINE_LAMBDA { return load_complex(p.turns_horizontal + 2 * l, span); };
  in_parallel(p.planes * pairs, p.planes * p.height * p.width, p.threads,
              [&](std::int64_t first, std::int64_t last, int) {
                for (std::int64_t unit = first; unit < last; ++unit) {
                  const std::int64_t plane = unit / pairs * p.height, k = unit % pairs;
                  const std::int64_t other = k == 0 ? 0 : p.height - k;
                  const float* w = p.turns_vertical + 2 * k;
                  const Rows rows{p.spectrum + 2 * (plane + k) * columns,
                                  p.spectrum + 2 * (plane + other) * columns,
                                  p.coefficients + (plane + k) * p.width,
                                  p.coefficients + (plane + other) * p.width,
                                  {spread<Float>(w[0]), spread<Float>(w[1])},
                                  other == k,
                                  k == 0};
                  const auto at = [&](std::int64_t l, auto span) RMP_INLINE_LAMBDA {
                    if (p.inverse) {
                      turn_back(p, rows, l, column_turn(l, span), span);
                    } else {
                      turn(p, rows, l, column_turn(l, span), span);
                    }
                  };
                  // The first column has no mirror image.
                  at(0, Part{1});
                  std::int64_t l = 1;
                  for (; l + kLanes <= columns; l += kLanes) at(l, Whole{});
                  for (; l < columns; ++l) at(l, Part{1});
                }
              });
}

}  // namespace RMP_PATH
}  // namespace rmp
