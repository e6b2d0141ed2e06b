#include "csrc/tensor_view.h"

#include <utility>

#include "csrc/dispatch.h"

namespace py = pybind11;

namespace rmp {

// The DLPack ABI, version 0.x, which every producer still speaks: https://dmlc.github.io/dlpack/latest/c_api.html
struct DLDevice {
  std::int32_t device_type;
  std::int32_t device_id;
};
struct DLDataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  std::int32_t ndim;
  DLDataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor*);
};

namespace {

constexpr std::int32_t kCpu = 1, kCuda = 2;
constexpr const char* kCodes[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};

DType dtype_of(DLDataType type) {
  if (type.lanes != 1) return DType::other;
  if (type.code == 2 && type.bits == 32) return DType::float32;
  if (type.code == 2 && type.bits == 64) return DType::float64;
  if (type.code == 5 && type.bits == 64) return DType::complex64;
  if (type.code == 0 && type.bits == 64) return DType::int64;
  if (type.code == 1 && type.bits == 8) return DType::uint8;
  if (type.code == 6 && type.bits == 8) return DType::boolean;
  return DType::other;
}

std::string dtype_text(DLDataType type) {
  const std::string code = type.code < 7 ? kCodes[type.code] : "unknown";
  return "torch." + (type.code == 6 ? code : code + std::to_string(type.bits));
}

const char* dtype_text(DType type) {
  switch (type) {
    case DType::float32:
      return "torch.float32";
    case DType::float64:
      return "torch.float64";
    case DType::complex64:
      return "torch.complex64";
    case DType::int64:
      return "torch.int64";
    case DType::uint8:
      return "torch.uint8";
    case DType::boolean:
      return "torch.bool";
    case DType::other:
      break;
  }
  return "another dtype";
}

bool is_contiguous(const DLTensor& tensor) {
  if (!tensor.strides) return true;
  std::int64_t expected = 1;
  for (std::int32_t axis = tensor.ndim - 1; axis >= 0; --axis) {
    if (tensor.shape[axis] == 0) return true;
  }
  for (std::int32_t axis = tensor.ndim - 1; axis >= 0; --axis) {
    if (tensor.shape[axis] != 1 && tensor.strides[axis] != expected) return false;
    expected *= tensor.shape[axis];
  }
  return true;
}

std::string quoted(const char* name) { return "`" + std::string(name) + "`"; }

// torch's own exporter: Tensor.__dlpack__ is Python and takes longer than the kernels do on small images. It leaves out
// two checks, which are made here.
struct Torch {
  py::object tensor, to_dlpack;
};

// Null while nobody has imported torch: then no argument is one of its tensors.
const Torch* torch() {
  static const Torch* found = nullptr;  // guarded by the GIL; never freed, since modules outlive the interpreter's exit
  if (!found && py::module_::import("sys").attr("modules").contains("torch")) {
    found = new Torch{py::module_::import("torch").attr("Tensor"),
                      py::module_::import("torch.utils.dlpack").attr("to_dlpack")};
  }
  return found;
}

py::object exported(py::handle tensor, const char* name) {
  const Torch* known = torch();
  const bool is_torch = known && py::isinstance(tensor, known->tensor);
  if (!is_torch && !py::hasattr(tensor, "__dlpack__")) {
    throw py::type_error(quoted(name) + " must be a torch.Tensor, got " +
                         py::str(py::type::of(tensor).attr("__name__")).cast<std::string>() +
                         "; convert it with torch.as_tensor");
  }
  if (is_torch && tensor.attr("requires_grad").cast<bool>()) {
    throw py::value_error(quoted(name) + " must not require grad; call .detach()");
  }
  if (is_torch && (tensor.attr("is_conj")().cast<bool>() || tensor.attr("is_neg")().cast<bool>())) {
    throw py::value_error(quoted(name) + " must not be a lazily conjugated or negated view; call .resolve_conj() and " +
                          ".resolve_neg()");
  }
  try {
    return is_torch ? known->to_dlpack(tensor) : tensor.attr("__dlpack__")();
  } catch (const py::error_already_set& error) {
    throw py::value_error(quoted(name) +
                          " cannot be read through DLPack: " + py::str(error.value()).cast<std::string>());
  }
}

}  // namespace

std::string shape_text(const Shape& shape) {
  std::string text = "(";
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    text += (axis ? ", " : "") + std::to_string(shape[axis]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

TensorView::TensorView(py::handle tensor, const char* name) : name_(name) {
  const py::object capsule = exported(tensor, name);
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (!managed) throw py::error_already_set();
  // Renaming hands the tensor over to us; whoever renamed it calls the deleter.
  if (PyCapsule_SetName(capsule.ptr(), "used_dltensor") != 0) throw py::error_already_set();
  managed_ = managed;
  try {
    read(*managed);
  } catch (...) {
    release();
    throw;
  }
}

void TensorView::read(const DLManagedTensor& managed) {
  const DLTensor& tensor = managed.dl_tensor;
  shape_.assign(tensor.shape, tensor.shape + tensor.ndim);
  dtype_ = dtype_of(tensor.dtype);
  dtype_name_ = dtype_text(tensor.dtype);
  device_ = {tensor.device.device_type == kCuda, tensor.device.device_id};
  if (!device_.cuda && tensor.device.device_type != kCpu) {
    throw py::value_error(quoted(name_) + " must be on a CPU or CUDA device, got another one; move it with .cpu()");
  }
  if (device_.cuda && !built_with_cuda()) {
    throw py::value_error(quoted(name_) + " must be on device cpu, got " + device_.text() + ": " + cuda_problem() +
                          "; move it with .cpu()");
  }
  if (!is_contiguous(tensor)) {
    throw py::value_error(quoted(name_) + " must be contiguous, got strides " +
                          shape_text(Shape(tensor.strides, tensor.strides + tensor.ndim)) + " for shape " +
                          shape_text(shape_) + "; call .contiguous()");
  }
  data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
}

TensorView::~TensorView() { release(); }

TensorView::TensorView(TensorView&& other) noexcept
    : name_(other.name_),
      managed_(std::exchange(other.managed_, nullptr)),
      data_(std::exchange(other.data_, nullptr)),
      dtype_(other.dtype_),
      dtype_name_(std::move(other.dtype_name_)),
      shape_(std::move(other.shape_)),
      device_(other.device_) {}

TensorView& TensorView::operator=(TensorView&& other) noexcept {
  if (this == &other) return *this;
  release();
  name_ = other.name_;
  managed_ = std::exchange(other.managed_, nullptr);
  data_ = std::exchange(other.data_, nullptr);
  dtype_ = other.dtype_;
  dtype_name_ = std::move(other.dtype_name_);
  shape_ = std::move(other.shape_);
  device_ = other.device_;
  return *this;
}

void TensorView::release() noexcept {
  if (managed_ && managed_->deleter) managed_->deleter(managed_);
  managed_ = nullptr;
}

TensorView& TensorView::with_dtype(DType expected, DType alternative) {
  if (dtype_ == expected || (alternative != DType::other && dtype_ == alternative)) return *this;
  const std::string also = alternative == DType::other ? "" : std::string(" or ") + dtype_text(alternative);
  throw py::type_error(quoted(name_) + " must be " + dtype_text(expected) + also + ", got " + dtype_name_ +
                       "; convert it with .to(" + dtype_text(expected) + ")");
}

TensorView& TensorView::with_shape(const Shape& expected, const char* axes) {
  if (shape_ == expected) return *this;
  throw py::value_error(quoted(name_) + " must have shape " + axes + " = " + shape_text(expected) + ", got " +
                        shape_text(shape_));
}

void TensorView::check_device(const Device& expected) const {
  if (device_ == expected) return;
  throw py::value_error(quoted(name_) + " must be on device " + expected.text() + ", got " + device_.text() +
                        "; move it with .to('" + expected.text() + "')");
}

std::int64_t TensorView::numel() const {
  std::int64_t count = 1;
  for (const std::int64_t n : shape_) count *= n;
  return count;
}

std::int64_t TensorView::item_size() const {
  std::int64_t count = 1;
  for (std::size_t axis = 1; axis < shape_.size(); ++axis) count *= shape_[axis];
  return count;
}

}  // namespace rmp
