// A step of conjugate gradients but for the product with the matrix, every item on its own (Saad, Iterative Methods for
// Sparse Linear Systems, 2nd ed., algorithm 9.1).
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/sums.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

// An item without curvature stays where it is; what is not a number stays so.
float quotient(double numerator, double denominator) {
  return denominator <= 0.0 ? 0.0f : static_cast<float>(numerator / denominator);
}

double sum_of(const double* sums, std::int64_t chunks) {
  double sum = 0.0;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) sum += sums[chunk];
  return sum;
}

// each(item, first element, elements, where the sum of that chunk lies) over all chunks of all items.
template <class Each>
RMP_INLINE void over_chunks(const ConjugateParams& p, const Each& each) {
  const std::int64_t chunks = p.chunks();
  in_parallel(p.items * chunks, p.items * p.size, p.threads, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t unit = first; unit < last; ++unit) {
      const std::int64_t item = unit / chunks, begin = unit % chunks * kChunk;
      each(item, item * p.size + begin, smaller(kChunk, p.size - begin), unit);
    }
  });
}

}  // namespace

void conjugate_step(const ConjugateParams& p) {
  const std::int64_t chunks = p.chunks();
  double *const curvatures = p.sums, *const squares = p.sums + p.items * chunks;
  over_chunks(p, [&](std::int64_t, std::int64_t at, std::int64_t count, std::int64_t unit) {
    curvatures[unit] = sum_of_products(p.direction + at, p.image + at, count);
  });
  over_chunks(p, [&](std::int64_t item, std::int64_t at, std::int64_t count, std::int64_t unit) {
    const bool rests = p.squares[item] <= p.least[item];
    const Float step =
        spread<Float>(rests ? 0.0f : quotient(p.product[item], sum_of(curvatures + item * chunks, chunks)));
    const Float back = spread<Float>(0.0f) - step;
    over(count, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA {
      float *const solution = p.solution + at + i, *const residual = p.residual + at + i;
      store(solution, fused(step, load(p.direction + at + i, span), load(solution, span)), span);
      store(residual, fused(back, load(p.image + at + i, span), load(residual, span)), span);
    });
    squares[unit] = sum_of_products(p.residual + at, p.residual + at, count);
  });
  for (std::int64_t item = 0; item < p.items; ++item) p.squares[item] = sum_of(squares + item * chunks, chunks);
}

void conjugate_turn(const ConjugateParams& p) {
  const std::int64_t chunks = p.chunks();
  const bool preconditioned = p.towards != p.residual;
  if (preconditioned) {
    over_chunks(p, [&](std::int64_t, std::int64_t at, std::int64_t count, std::int64_t unit) {
      p.sums[unit] = sum_of_products(p.residual + at, p.towards + at, count);
    });
  }
  const auto product = [&](std::int64_t item) {
    return preconditioned ? sum_of(p.sums + item * chunks, chunks) : p.squares[item];
  };
  over_chunks(p, [&](std::int64_t item, std::int64_t at, std::int64_t count, std::int64_t) {
    const Float share = spread<Float>(quotient(product(item), p.product[item]));
    over(count, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA {
      float* const direction = p.direction + at + i;
      store(direction, fused(share, load(direction, span), load(p.towards + at + i, span)), span);
    });
  });
  for (std::int64_t item = 0; item < p.items; ++item) p.product[item] = product(item);
}

}  // namespace RMP_PATH
}  // namespace rmp
