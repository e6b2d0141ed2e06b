// A Gaussian blur A = K_v x K_h^T. Its kernel is symmetric, so that K = V diag(s) V^T in the cosine basis (reflect) or
// the Hartley basis (circular), as in python/rmp_fast/operators/blur.py; d_y is then pointwise in c = V_v^T D V_h.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <vector>

#include "csrc/library/checks.h"
#include "csrc/library/measurement.h"
#include "csrc/library/memory.h"

namespace rmp {
namespace library {
namespace {

// exp(-k^2 / (2 std^2)) for |k| <= 4 std, normalised to sum one.
std::vector<double> gaussian_taps(double deviation) {
  const auto radius = static_cast<std::int64_t>(4 * deviation + 0.5);
  std::vector<double> taps(static_cast<std::size_t>(2 * radius + 1));
  double sum = 0.0;
  for (std::int64_t k = -radius; k <= radius; ++k) {
    const double scaled = static_cast<double>(k) / deviation;
    sum += taps[static_cast<std::size_t>(k + radius)] = std::exp(-0.5 * scaled * scaled);
  }
  for (double& tap : taps) tap /= sum;
  return taps;
}

// One axis of n pixels: s (n) and V (n, n) with its transpose.
struct Axis {
  std::int64_t n;
  std::vector<double> s;
  Buffer<float> v, v_transposed;

  Axis(std::int64_t length, const std::vector<double>& taps, bool circular)
      : n(length),
        s(static_cast<std::size_t>(length)),
        v(product("height and width", length, length)),
        v_transposed(length * length) {
    const double pi = std::acos(-1.0), step = circular ? 2 * pi / static_cast<double>(n) : pi / static_cast<double>(n);
    const auto radius = static_cast<std::int64_t>(taps.size() / 2);
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = 0.0;
      for (std::int64_t k = -radius; k <= radius; ++k) {
        sum += std::cos(step * static_cast<double>(j) * static_cast<double>(k)) *
               taps[static_cast<std::size_t>(k + radius)];
      }
      s[static_cast<std::size_t>(j)] = sum;
      for (std::int64_t i = 0; i < n; ++i) {
        v[i * n + j] = v_transposed[j * n + i] =
            static_cast<float>(circular ? hartley(i, j, step) : cosine(i, j, step));
      }
    }
  }

 private:
  double hartley(std::int64_t i, std::int64_t j, double step) const {
    const double angle = step * static_cast<double>(i * j % n);
    return (std::cos(angle) + std::sin(angle)) / std::sqrt(static_cast<double>(n));
  }
  double cosine(std::int64_t i, std::int64_t j, double step) const {
    if (j == 0) return std::sqrt(1 / static_cast<double>(n));
    return std::cos(step * (static_cast<double>(i) + 0.5) * static_cast<double>(j)) *
           std::sqrt(2 / static_cast<double>(n));
  }
};

// out (m, n) = a (m, k) b (k, n)
void multiply(const float* a, const float* b, float* out, std::int64_t m, std::int64_t k, std::int64_t n) {
  std::memset(out, 0, static_cast<std::size_t>(m * n) * sizeof(float));
  for (std::int64_t row = 0; row < m; ++row) {
    float* const to = out + row * n;
    for (std::int64_t inner = 0; inner < k; ++inner) {
      const float factor = a[row * k + inner];
      const float* const from = b + inner * n;
      for (std::int64_t column = 0; column < n; ++column) to[column] += factor * from[column];
    }
  }
}

class GaussianBlur : public Measurement {
 public:
  GaussianBlur(const ImageShape& shape, const std::vector<double>& taps, bool circular, int most_threads)
      : Measurement(shape, shape.size()),
        vertical_(shape.height, taps, circular),
        horizontal_(shape.width, taps, circular),
        taps_(static_cast<std::int64_t>(taps.size())),
        singular_(shape.height * shape.width),
        energy_(shape.size()),
        data_(shape.batch * shape.size()),
        coefficients_(shape.batch * shape.size()),
        half_(shape.height * shape.width) {
    std::copy(taps.begin(), taps.end(), taps_.data());
    set_singular_values();
    params_.planes = shape.batch * shape.channels;
    params_.height = shape.height, params_.width = shape.width;
    params_.taps_vertical = params_.taps_horizontal = taps_.data();
    params_.radius_vertical = params_.radius_horizontal = taps_.count() / 2;
    params_.boundary = circular ? Boundary::circular : Boundary::reflect;
    scratch_ = Buffer<float>(product("threads", most_threads, params_.scratch_size()));
    params_.scratch = scratch_.data();
  }

  std::int64_t buffer_bytes() const override {
    return static_cast<std::int64_t>(2 * (vertical_.v.bytes() + horizontal_.v.bytes()) + singular_.bytes() +
                                     energy_.bytes() + data_.bytes() + coefficients_.bytes() + half_.bytes() +
                                     scratch_.bytes());
  }

  void load(const float* y, const Context&) override {
    transform(y, data_.data(), vertical_.v_transposed, horizontal_.v);
    const std::int64_t plane = shape_.height * shape_.width;
    for (std::int64_t i = 0; i < data_.count(); ++i) data_[i] *= singular_[i % plane];
  }
  void condition(const float*, const float* ratio, float* denoised, const Context& on) override {
    transform(denoised, coefficients_.data(), vertical_.v_transposed, horizontal_.v);
    SpectralParams params{};
    params.items = shape_.batch, params.size = shape_.size();
    params.coefficients = params.out = coefficients_.data();
    params.energy = energy_.data();
    params.data = data_.data();
    params.noise_ratio = ratio;
    params.threads = on.threads;
    on.run->spectral(params);
    transform(coefficients_.data(), denoised, vertical_.v, horizontal_.v_transposed);
  }
  void apply(const float* x, float* y, const Context& on) override { blur(x, y, false, on); }
  void adjoint(const float* y, float* x, const Context& on) override { blur(y, x, true, on); }

 private:
  // Values at the rounding level count as unseen: a noiseless solve would amplify the measurement's rounding there.
  void set_singular_values() {
    double largest = 0.0;
    for (const double v : vertical_.s) {
      for (const double h : horizontal_.s) largest = std::max(largest, std::fabs(v * h));
    }
    const std::int64_t plane = shape_.height * shape_.width;
    for (std::int64_t i = 0; i < plane; ++i) {
      const double s = vertical_.s[static_cast<std::size_t>(i / shape_.width)] *
                       horizontal_.s[static_cast<std::size_t>(i % shape_.width)];
      singular_[i] = std::fabs(s) > 32.0 * FLT_EPSILON * largest ? static_cast<float>(s) : 0.0f;
    }
    for (std::int64_t i = 0; i < energy_.count(); ++i) energy_[i] = singular_[i % plane] * singular_[i % plane];
  }

  // to = left from right, plane by plane; `to` may be `from`.
  void transform(const float* from, float* to, const Buffer<float>& left, const Buffer<float>& right) const {
    const std::int64_t height = shape_.height, width = shape_.width;
    for (std::int64_t plane = 0; plane < shape_.batch * shape_.channels; ++plane) {
      const std::int64_t at = plane * height * width;
      multiply(left.data(), from + at, half_.data(), height, height, width);
      multiply(half_.data(), right.data(), to + at, height, width, width);
    }
  }

  void blur(const float* from, float* to, bool adjoint, const Context& on) const {
    BlurParams params = params_;
    params.adjoint = adjoint;
    params.x = from, params.out = to;
    params.threads = on.threads;
    on.run->separable_blur(params);
  }

  Axis vertical_, horizontal_;
  Buffer<float> taps_, singular_, energy_, data_, coefficients_, half_, scratch_;
  BlurParams params_{};
};

}  // namespace

std::unique_ptr<Measurement> make_blur(const rmp_fast_operator& op, const ImageShape& shape, int most_threads) {
  check_positive("op.blur_std", op.blur_std);
  // Making the spectrum takes time in proportion, and nothing is left of an image long before.
  if (op.blur_std > 1000) refuse("op.blur_std", "be at most 1000 pixels", text(op.blur_std));
  const bool circular = check_choice("op.boundary", op.boundary, RMP_FAST_CIRCULAR) == RMP_FAST_CIRCULAR;
  return std::make_unique<GaussianBlur>(shape, gaussian_taps(op.blur_std), circular, most_threads);
}

}  // namespace library
}  // namespace rmp
