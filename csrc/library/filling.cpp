#include "csrc/library/filling.h"

#include <algorithm>

namespace rmp {
namespace library {
namespace {

// Row or column i at half the size: where it lies and its other neighbour, which counts a quarter.
struct Half {
  Half(std::int64_t i, std::int64_t count)
      : near(i / 2), far(std::clamp<std::int64_t>(i % 2 ? i / 2 + 1 : i / 2 - 1, 0, count - 1)) {}

  std::int64_t near, far;
};

}  // namespace

Pyramid::Pyramid(std::int64_t height, std::int64_t width) {
  while (true) {
    const std::int64_t size = height * width;
    levels_.push_back({height, width, Buffer<float>(levels_.empty() ? 0 : size), Buffer<float>(size)});
    if (size == 1) break;
    height = (height + 1) / 2;
    width = (width + 1) / 2;
  }
}

std::int64_t Pyramid::bytes() const {
  std::size_t sum = 0;
  for (const Level& level : levels_) sum += level.value.bytes() + level.weight.bytes();
  return static_cast<std::int64_t>(sum);
}

void Pyramid::fill(const std::uint8_t* mask, float* plane) {
  for (std::int64_t i = 0; i < levels_[0].weight.count(); ++i) levels_[0].weight[i] = mask[i];
  const auto values = [&](std::size_t k) { return k ? levels_[k].value.data() : plane; };
  const std::size_t last = levels_.size() - 1;
  for (std::size_t k = 0; k < last; ++k) {
    const Level &fine = levels_[k], &coarse = levels_[k + 1];
    const float* const value = values(k);
    for (std::int64_t i = 0; i < coarse.height; ++i) {
      for (std::int64_t j = 0; j < coarse.width; ++j) {
        float sum = 0.0f, known = 0.0f;
        for (std::int64_t row = 2 * i; row < std::min(2 * i + 2, fine.height); ++row) {
          for (std::int64_t column = 2 * j; column < std::min(2 * j + 2, fine.width); ++column) {
            sum += value[row * fine.width + column];
            known += fine.weight[row * fine.width + column];
          }
        }
        const float over = std::max(known, 1.0f);
        coarse.value[i * coarse.width + j] = sum / over;
        coarse.weight[i * coarse.width + j] = known / over;
      }
    }
  }
  if (levels_[last].weight[0] > 0) values(last)[0] /= levels_[last].weight[0];
  for (std::size_t k = last; k-- > 0;) {
    const Level &fine = levels_[k], &coarse = levels_[k + 1];
    const float* const below = coarse.value.data();
    float* const value = values(k);
    for (std::int64_t i = 0; i < fine.height; ++i) {
      const Half rows(i, coarse.height);
      const float *near = below + rows.near * coarse.width, *far = below + rows.far * coarse.width;
      for (std::int64_t j = 0; j < fine.width; ++j) {
        const Half columns(j, coarse.width);
        const float mixed = 0.75f * (0.75f * near[columns.near] + 0.25f * near[columns.far]) +
                            0.25f * (0.75f * far[columns.near] + 0.25f * far[columns.far]);
        const std::int64_t at = i * fine.width + j;
        value[at] += (1.0f - fine.weight[at]) * mixed;
      }
    }
  }
}

}  // namespace library
}  // namespace rmp
