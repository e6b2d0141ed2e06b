// Memory that a plan owns: zeroed, and aligned to the cache lines and widest vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace rmp {
namespace library {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t count) : count_(count) {
    if (static_cast<std::uint64_t>(count) > (PTRDIFF_MAX - kAlignment) / sizeof(T)) throw std::bad_alloc();
    const std::size_t whole = (bytes() / kAlignment + 1) * kAlignment;
    data_.reset(static_cast<T*>(std::aligned_alloc(kAlignment, whole)));
    if (!data_) throw std::bad_alloc();
    std::memset(static_cast<void*>(data_.get()), 0, bytes());
  }

  T* data() const { return data_.get(); }
  std::int64_t count() const { return count_; }
  std::size_t bytes() const { return static_cast<std::size_t>(count_) * sizeof(T); }
  T& operator[](std::int64_t i) const { return data_[static_cast<std::size_t>(i)]; }

 private:
  static constexpr std::size_t kAlignment = 64;
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };

  std::unique_ptr<T[], Free> data_;
  std::int64_t count_ = 0;
};

}  // namespace library
}  // namespace rmp
