// The calls that -fsanitize=thread puts at every access to memory, answered here instead of by its runtime: two threads
// may touch the same bytes, one of them writing, only if a barrier of their block lies between. Blocks have none.
#include <cstdint>
#include <string>
#include <unordered_map>

#include "tests/simt/simt.h"

#if !defined(SIMT_RACES)

// Not watched: the accesses are not announced.
void simt::forget_accesses() {}
void simt::forget_shared(const void*, std::size_t) {}

#else

namespace simt {
namespace {

// The last two different threads that did the same to a byte; more are never needed to know whether there was another.
struct Touch {
  std::int64_t block = -1, thread = -1, phase = -1;
  bool other_threads = false, other_blocks = false;

  void add(const Where& w) {
    if (block != w.block || phase != w.phase) {
      other_blocks |= block >= 0 && block != w.block;
      other_threads = false;
      block = w.block, phase = w.phase, thread = w.thread;
    } else {
      other_threads |= thread != w.thread;
    }
  }
  bool clashes(const Where& w) const {
    if (block < 0) return false;
    if (block != w.block || other_blocks) return true;
    return phase == w.phase && (thread != w.thread || other_threads);
  }
};
struct Cell {
  Touch reads, writes;
};

std::unordered_map<std::uintptr_t, Cell> cells;

void touch(std::uintptr_t address, std::size_t bytes, const Where& w, bool writes) {
  const bool shared =
      address >= reinterpret_cast<std::uintptr_t>(w.shared) && address < reinterpret_cast<std::uintptr_t>(w.shared_end);
  Cell& cell = cells[address];
  if (cell.writes.clashes(w) || (writes && cell.reads.clashes(w))) {
    fail("data race on " + std::to_string(bytes) + " bytes of " + (shared ? "shared" : "global") + " memory: thread " +
         std::to_string(w.thread) + " of block " + std::to_string(w.block) + (writes ? " writes" : " reads") +
         " what another one " + (cell.writes.clashes(w) ? "wrote" : "read"));
  }
  (writes ? cell.writes : cell.reads).add(w);
}

// Numbers are touched word by word, flags byte by byte.
void access(const void* p, std::size_t bytes, bool writes) {
  const Where w = where();
  if (!w.in_kernel || (p >= w.stack && p < w.stack_end)) return;
  const std::size_t step = bytes % 4 == 0 ? 4 : 1;
  for (std::size_t i = 0; i < bytes; i += step) touch(reinterpret_cast<std::uintptr_t>(p) + i, step, w, writes);
}

}  // namespace

void forget_accesses() { cells.clear(); }
void forget_shared(const void* memory, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) cells.erase(reinterpret_cast<std::uintptr_t>(memory) + i);
}

}  // namespace simt

#define SIMT_ACCESS(bytes)                                                                 \
  extern "C" void __tsan_read##bytes(void* p) { simt::access(p, bytes, false); }           \
  extern "C" void __tsan_write##bytes(void* p) { simt::access(p, bytes, true); }           \
  extern "C" void __tsan_unaligned_read##bytes(void* p) { simt::access(p, bytes, false); } \
  extern "C" void __tsan_unaligned_write##bytes(void* p) { simt::access(p, bytes, true); }
SIMT_ACCESS(1)
SIMT_ACCESS(2)
SIMT_ACCESS(4)
SIMT_ACCESS(8)
SIMT_ACCESS(16)
extern "C" void __tsan_read_range(void* p, std::size_t bytes) { simt::access(p, bytes, false); }
extern "C" void __tsan_write_range(void* p, std::size_t bytes) { simt::access(p, bytes, true); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}

#endif
