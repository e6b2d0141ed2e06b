// Holes filled by push and pull, as `_filled` of python/rmp_fast/operators/masks.py does it.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/library/memory.h"

namespace rmp {
namespace library {

// The averages of a mask's pixels at half the size, a quarter and so on down to one pixel.
class Pyramid {
 public:
  Pyramid(std::int64_t height, std::int64_t width);

  std::int64_t bytes() const;
  // `plane` (height, width) holds values where `mask` is 1 and zeros elsewhere, which are filled.
  void fill(const std::uint8_t* mask, float* plane);

 private:
  struct Level {
    std::int64_t height, width;
    Buffer<float> value, weight;
  };

  std::vector<Level> levels_;  // the first is of the plane itself, and holds its weights alone
};

}  // namespace library
}  // namespace rmp
