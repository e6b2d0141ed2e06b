// A checked view of somebody else's tensor, taken through DLPack. Nothing else touches foreign memory.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/device.h"

namespace rmp {

struct DLManagedTensor;

enum class DType { float32, float64, complex64, int64, uint8, boolean, other };

using Shape = std::vector<std::int64_t>;

std::string shape_text(const Shape& shape);

class TensorView {
 public:
  // Raises TypeError unless `tensor` has __dlpack__, ValueError unless it is contiguous and on the CPU or, if this was
  // built with CUDA, on a CUDA device.
  TensorView(pybind11::handle tensor, const char* name);
  ~TensorView();
  TensorView(TensorView&& other) noexcept;
  TensorView& operator=(TensorView&& other) noexcept;
  TensorView(const TensorView&) = delete;
  TensorView& operator=(const TensorView&) = delete;

  // Raises TypeError unless the dtype is `expected` (or `alternative`).
  TensorView& with_dtype(DType expected, DType alternative = DType::other);
  // Raises ValueError unless the shape is `expected`, whose axes are called `axes`, as in "(B, C, H, W)".
  TensorView& with_shape(const Shape& expected, const char* axes);

  // Raises ValueError unless the tensor lies there.
  void check_device(const Device& expected) const;

  const Shape& shape() const { return shape_; }
  const Device& device() const { return device_; }
  DType dtype() const { return dtype_; }
  const char* name() const { return name_; }
  std::int64_t numel() const;
  // Elements of one item, that is, behind the first axis.
  std::int64_t item_size() const;
  template <class T>
  T* data() const {
    return static_cast<T*>(data_);
  }

 private:
  void read(const DLManagedTensor& managed);
  void release() noexcept;

  const char* name_;
  DLManagedTensor* managed_ = nullptr;
  void* data_ = nullptr;
  DType dtype_ = DType::other;
  std::string dtype_name_;
  Shape shape_;
  Device device_;
};

}  // namespace rmp
