// What a cosine transform by FFT does beside the FFT (Makhoul, "A fast cosine transform in one and two dimensions",
// IEEE Trans. ASSP 28, 1980). Its samples are the even ones followed by the odd ones backwards, v = (x0 x2 x4 ... x5 x3
// x1), and its coefficients are parts of the spectrum of v, turned. The way back takes the same FFT of real numbers,
// since the Hartley transform, real minus imaginary part of a spectrum, is its own inverse.
#include "kernels/cpu/parallel.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

// Where sample i of an axis of n is put.
RMP_INLINE std::int64_t folded(std::int64_t i, std::int64_t n) { return i % 2 == 0 ? i / 2 : n - (i + 1) / 2; }

RMP_INLINE std::int64_t opposite(std::int64_t k, std::int64_t n) { return k == 0 ? 0 : n - k; }

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

// A row of an image from the spectrum of Hartley numbers in its folded row and in the opposite one: the even samples
// follow each other in the one, the odd ones, which are folded backwards, in the other.
RMP_INLINE void unfold_row(const float* even, const float* odd, float* x, std::int64_t n) {
  std::int64_t i = 0;
  for (; 2 * (i + kLanes) <= n; i += kLanes) {
    const Complex a = load_complex(even + 2 * i, Whole{}), b = load_complex(odd + 2 * i + 2, Whole{});
    const Float first = a.real - a.imaginary, second = b.real + b.imaginary;
    store(x + 2 * i, alternating_low(first, second));
    store(x + 2 * i + kLanes, alternating_high(first, second));
  }
  for (; 2 * i < n; ++i) {
    x[2 * i] = even[2 * i] - even[2 * i + 1];
    if (2 * i + 1 < n) x[2 * i + 1] = odd[2 * i + 2] + odd[2 * i + 3];
  }
}

// Rows k and height - k of the coefficients, both the same where `single`.
struct Rows {
  float *first, *second;
  Complex turn;
  bool single;
};

// A number of each of two columns, l and width - l, of which the first column has none.
struct Pair {
  Float forwards, back;
};

template <class Span>
RMP_INLINE Pair load_pair(const float* row, std::int64_t l, std::int64_t width, Span span) {
  return {load(row + l, span), l > 0 ? load_backwards(row + width - l, span) : Float{}};
}
template <class Span>
RMP_INLINE void store_pair(float* row, std::int64_t l, std::int64_t width, Pair pair, Span span) {
  store(row + l, pair.forwards, span);
  if (l > 0) store_backwards(row + width - l, pair.back, span);
}

// With V the spectrum and w the turns, U = w(column) V holds the transforms A of column l and B of column width - l as
// U[k] = A - i B and U[-k] = conj(A + i B), and the coefficients are the real and, in row height - k, the negative
// imaginary parts of w(row) A and w(row) B.
template <class Span>
RMP_INLINE void turn(const CosineParams& p, const Rows& rows, const float* spectrum, const float* other, std::int64_t l,
                     Span span) {
  const Complex column = load_complex(p.turns_horizontal + 2 * l, span);
  const Complex u = column * load_complex(spectrum + 2 * l, span), v = column * load_complex(other + 2 * l, span);
  const Float zero{};
  const Complex a = rows.turn * Complex{u.real + v.real, u.imaginary - v.imaginary};
  const Complex b = rows.turn * Complex{zero - (u.imaginary + v.imaginary), u.real - v.real};
  store_pair(rows.first, l, p.width, {a.real, b.real}, span);
  if (!rows.single) store_pair(rows.second, l, p.width, {zero - a.imaginary, zero - b.imaginary}, span);
}

// The same the other way round, in place; the turns are the reciprocals of those. A spectrum is left as its Hartley
// numbers, those of the opposite frequencies too, where it is the conjugate one.
template <class Span>
RMP_INLINE void turn_back(const CosineParams& p, const Rows& rows, std::int64_t k, std::int64_t l, Span span) {
  const Float zero{};
  const Pair c = load_pair(rows.first, l, p.width, span);
  const Pair d = k == 0 ? Pair{zero, zero} : load_pair(rows.second, l, p.width, span);
  const Complex column = load_complex(p.turns_horizontal + 2 * l, span);
  const Complex a = rows.turn * Complex{c.forwards, zero - d.forwards};
  const Complex b = l > 0 ? rows.turn * Complex{c.back, zero - d.back} : Complex{zero, zero};
  const Complex u = column * Complex{a.real + b.imaginary, a.imaginary - b.real};
  const Complex v = column * Complex{a.real - b.imaginary, zero - (a.imaginary + b.real)};
  store_pair(rows.first, l, p.width, {u.real - u.imaginary, v.real + v.imaginary}, span);
  if (!rows.single) store_pair(rows.second, l, p.width, {v.real - v.imaginary, u.real + u.imaginary}, span);
}

// at(k, rows, column, Whole or Part) over all pairs of rows and columns of coefficients that lie at p.out.
template <class At>
RMP_INLINE void over_turns(const CosineParams& p, const At& at) {
  const std::int64_t pairs = p.height / 2 + 1, columns = p.width / 2 + 1;
  in_parallel(p.planes * pairs, p.planes * p.height * p.width, p.threads,
              [&](std::int64_t first, std::int64_t last, int) {
                for (std::int64_t unit = first; unit < last; ++unit) {
                  const std::int64_t plane = unit / pairs * p.height, k = unit % pairs;
                  const std::int64_t row = plane + k, other = plane + opposite(k, p.height);
                  const Float real = spread<Float>(p.turns_vertical[2 * k]);
                  const Float imaginary = spread<Float>(p.turns_vertical[2 * k + 1]);
                  const Rows rows{p.out + row * p.width, p.out + other * p.width, {real, imaginary}, row == other};
                  at(k, rows, row, other, std::int64_t{0}, Part{1});
                  std::int64_t l = 1;
                  for (; l + kLanes <= columns; l += kLanes) at(k, rows, row, other, l, Whole{});
                  for (; l < columns; ++l) at(k, rows, row, other, l, Part{1});
                }
              });
}

// each(plane * height, row of the image, where that is folded to)
template <class Each>
RMP_INLINE void over_rows(const CosineParams& p, const Each& each) {
  in_parallel(p.planes * p.height, p.planes * p.height * p.width, p.threads,
              [&](std::int64_t first, std::int64_t last, int) {
                for (std::int64_t unit = first; unit < last; ++unit) {
                  const std::int64_t i = unit % p.height;
                  each(unit - i, i, folded(i, p.height));
                }
              });
}

}  // namespace

void cosine_fold(const CosineParams& p) {
  over_rows(p, [&](std::int64_t plane, std::int64_t i, std::int64_t k) RMP_INLINE_LAMBDA {
    fold_row(p.x + (plane + i) * p.width, p.out + (plane + k) * p.width, p.width);
  });
}

void cosine_unfold(const CosineParams& p) {
  const std::int64_t numbers = 2 * (p.width / 2 + 1);
  over_rows(p, [&](std::int64_t plane, std::int64_t i, std::int64_t k) RMP_INLINE_LAMBDA {
    unfold_row(p.x + (plane + k) * numbers, p.x + (plane + opposite(k, p.height)) * numbers,
               p.out + (plane + i) * p.width, p.width);
  });
}

void cosine_turn(const CosineParams& p) {
  const std::int64_t numbers = 2 * (p.width / 2 + 1);
  over_turns(p, [&](std::int64_t, const Rows& rows, std::int64_t row, std::int64_t other, std::int64_t l, auto span)
                    RMP_INLINE_LAMBDA { turn(p, rows, p.x + row * numbers, p.x + other * numbers, l, span); });
}

void cosine_turn_back(const CosineParams& p) {
  over_turns(p, [&](std::int64_t k, const Rows& rows, std::int64_t, std::int64_t, std::int64_t l, auto span)
                    RMP_INLINE_LAMBDA { turn_back(p, rows, k, l, span); });
}

}  // namespace RMP_PATH
}  // namespace rmp
