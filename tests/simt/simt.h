// What the fibers tell the watch over data races (races.cpp), and what it tells them.
#pragma once

#include <cstddef>
#include <string>

namespace simt {

// The thread that runs, if one does.
struct Where {
  bool in_kernel = false;
  unsigned block = 0, thread = 0, phase = 0;  // phase: barriers passed
  const unsigned char *stack = nullptr, *stack_end = nullptr, *shared = nullptr, *shared_end = nullptr;
};
Where where();

// Makes the launch fail.
void fail(const std::string& why);

void forget_accesses();
void forget_shared(const void* memory, std::size_t bytes);

}  // namespace simt
