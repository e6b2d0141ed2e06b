// Where memory lies.
#pragma once

#include <string>

namespace rmp {

struct Device {
  bool cuda = false;
  int index = 0;  // of a CUDA device

  bool operator==(const Device& other) const { return cuda == other.cuda && (!cuda || index == other.index); }
  std::string text() const { return cuda ? "cuda:" + std::to_string(index) : "cpu"; }
};

}  // namespace rmp
