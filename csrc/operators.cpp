#include "csrc/operators.h"

#include <algorithm>
#include <memory>

#include "csrc/dispatch.h"
#include "csrc/tensor_view.h"

namespace py = pybind11;

namespace rmp {
namespace {

std::unique_ptr<float[]> scratch_for(int threads, std::int64_t each) {
  return std::unique_ptr<float[]>(new float[static_cast<std::size_t>(threads * each)]);
}

template <class Params>
void launch(void (*launcher)(const Params&), const Params& params) {
  const py::gil_scoped_release release;
  launcher(params);
}

// Where all of these tensors lie, null ones left out; the first of them decides.
Target target_of(std::initializer_list<const TensorView*> views, const PathName& path, std::uintptr_t cuda_stream) {
  const Device& device = (*views.begin())->device();
  for (const TensorView* view : views) {
    if (view) view->check_device(device);
  }
  return resolve(device, path, cuda_stream);
}

void check_axes(const TensorView& view, std::size_t least, const char* axes) {
  if (view.shape().size() >= least) return;
  throw py::value_error("`" + std::string(view.name()) + "` must have shape " + axes + ", got " +
                        shape_text(view.shape()));
}

// Where all of these tensors lie, which must be the CPU.
Target processor_of(std::initializer_list<const TensorView*> views, const PathName& path) {
  const Target on = target_of(views, path, 0);
  if (on.run->cosine_fold) return on;
  const TensorView& first = **views.begin();
  throw py::value_error("`" + std::string(first.name()) + "` must be on device cpu, got " + first.device().text());
}

TensorView float_view(const py::object& tensor, const char* name) {
  TensorView view(tensor, name);
  view.with_dtype(DType::float32);
  return view;
}

struct Planes {
  std::int64_t count, height, width;
};

Planes planes_of(const TensorView& images) {
  check_axes(images, 2, "(..., H, W)");
  const std::int64_t height = images.shape().end()[-2], width = images.shape().end()[-1];
  return {images.numel() ? images.numel() / (height * width) : 0, height, width};
}

void check_apart(const TensorView& x, const TensorView& out) {
  if (x.numel() && x.data<float>() == out.data<float>()) {
    throw py::value_error("`out` must be another tensor than `x`");
  }
}

// Another tensor of the shape (B, ...) of `first`.
TensorView like(const TensorView& first, const py::object& tensor, const char* name) {
  check_axes(first, 1, "(B, ...)");
  TensorView view = float_view(tensor, name);
  view.with_shape(first.shape(), "(B, ...)");
  return view;
}

TensorView doubles(const py::object& tensor, const char* name, std::int64_t items) {
  TensorView view(tensor, name);
  view.with_dtype(DType::float64).with_shape({items}, "(B,)");
  return view;
}

void launch_sums(const Target& on, void (*launcher)(const ConjugateParams&), ConjugateParams& params) {
  const std::unique_ptr<double[]> owned(new double[static_cast<std::size_t>(2 * params.items * params.chunks())]);
  params.sums = owned.get();
  params.threads = on.threads;
  launch(launcher, params);
}

std::unique_ptr<TensorView> optional_view(const py::object& tensor, const char* name) {
  return tensor.is_none() ? nullptr : std::make_unique<TensorView>(float_view(tensor, name));
}

const float* data_of(const std::unique_ptr<TensorView>& view) { return view ? view->data<float>() : nullptr; }

TensorView complex_view(const py::object& tensor, const char* name, const Shape& shape, const char* axes) {
  TensorView view(tensor, name);
  view.with_dtype(DType::complex64).with_shape(shape, axes);
  return view;
}

TensorView half_spectrum(const py::object& tensor, const TensorView& image) {
  Shape shape = image.shape();
  shape.back() = shape.back() / 2 + 1;
  return complex_view(tensor, "spectrum", shape, "(..., H, W // 2 + 1)");
}

TensorView turns_view(const py::object& tensor, const char* name, std::int64_t axis) {
  return complex_view(tensor, name, {axis / 2 + 1}, "(n // 2 + 1,)");
}

// The tensor between the two passes of a blur on a CUDA device.
float* device_scratch(const py::object& scratch, const TensorView& source, const TensorView& target) {
  if (scratch.is_none()) throw py::value_error("`scratch` must be given for tensors on a CUDA device; like `out`");
  TensorView view = float_view(scratch, "scratch");
  view.with_shape(source.shape(), "(..., H, W)").check_device(source.device());
  const bool apart = view.data<float>() != source.data<float>() && view.data<float>() != target.data<float>();
  if (source.numel() && !apart) throw py::value_error("`scratch` must be another tensor than `x` and `out`");
  const std::int64_t longest = std::max(source.shape().end()[-1], source.shape().end()[-2]);
  if (longest >= std::int64_t{1} << 30) {
    throw py::value_error("`x` must have less than 2^30 rows and columns on a CUDA device, got " +
                          shape_text(source.shape()));
  }
  return view.data<float>();
}

// Either direction; `image` is (..., H, W), `averages` (..., ceil(H / f), ceil(W / f)).
void launch_blocks(const Target& on, void (*launcher)(const BlockAverageParams&), const TensorView& image,
                   TensorView& averages, std::int64_t factor, const TensorView& from, const TensorView& to) {
  check_axes(image, 2, "(..., H, W)");
  if (factor < 1) throw py::value_error("`factor` must be at least 1, got " + std::to_string(factor));
  Shape expected = image.shape();
  const std::size_t rank = expected.size();
  const std::int64_t height = expected[rank - 2], width = expected[rank - 1];
  // A factor beyond the image is the image; so large a one could not be added to.
  const std::int64_t rows = std::max<std::int64_t>(1, std::min(factor, height));
  const std::int64_t columns = std::max<std::int64_t>(1, std::min(factor, width));
  expected[rank - 2] = ceil_div(height, rows);
  expected[rank - 1] = ceil_div(width, columns);
  averages.with_shape(expected, "(..., ceil(H / factor), ceil(W / factor))");
  if (!image.numel()) return;
  BlockAverageParams params{};
  params.blocks.planes = image.numel() / (height * width);
  params.blocks.height = height;
  params.blocks.width = width;
  params.blocks.factor_rows = rows;
  params.blocks.factor_columns = columns;
  if (image.device().cuda && height * width >= std::int64_t{1} << 31) {
    throw py::value_error("`" + std::string(image.name()) + "` must have less than 2^31 pixels on a CUDA device, got " +
                          shape_text(image.shape()));
  }
  params.threads = on.threads;
  params.queue = on.queue;
  const auto scratch = scratch_for(image.device().cuda ? 0 : params.threads, params.blocks.scratch());
  params.scratch = scratch.get();
  params.x = from.data<float>();
  params.out = to.data<float>();
  launch(launcher, params);
}

}  // namespace

void mask(const py::object& x, const py::object& mask, const py::object& out, const PathName& path,
          std::uintptr_t cuda_stream) {
  const TensorView source = float_view(x, "x");
  check_axes(source, 1, "(B, ...)");
  TensorView kept(mask, "mask"), target = float_view(out, "out");
  kept.with_dtype(DType::uint8, DType::boolean);
  target.with_shape(source.shape(), "(B, ...)");
  const std::int64_t items = source.shape()[0], size = source.item_size();
  const std::int64_t masks = kept.shape().empty() ? 0 : kept.shape()[0];
  if ((masks != 1 && masks != items) || kept.item_size() != size) {
    throw py::value_error("`mask` must have shape (1 or B, ...) = (1 or " + std::to_string(items) + ", ...) with " +
                          std::to_string(size) + " elements per item, got " + shape_text(kept.shape()));
  }
  const Target on = target_of({&source, &kept, &target}, path, cuda_stream);
  launch(on.run->mask, MaskParams{items, size, source.data<float>(), kept.data<std::uint8_t>(), masks == 1 ? 0 : size,
                                  target.data<float>(), on.threads, on.queue});
}

void block_average(const py::object& x, std::int64_t factor, const py::object& out, const PathName& path,
                   std::uintptr_t cuda_stream) {
  const TensorView image = float_view(x, "x");
  TensorView averages = float_view(out, "out");
  const Target on = target_of({&image, &averages}, path, cuda_stream);
  launch_blocks(on, on.run->block_average, image, averages, factor, image, averages);
}

void block_average_adjoint(const py::object& y, std::int64_t factor, const py::object& out, const PathName& path,
                           std::uintptr_t cuda_stream) {
  const TensorView image = float_view(out, "out");
  TensorView averages = float_view(y, "y");
  const Target on = target_of({&averages, &image}, path, cuda_stream);
  launch_blocks(on, on.run->block_average_adjoint, image, averages, factor, averages, image);
}

void separable_blur(const py::object& x, const py::object& taps_v, const py::object& taps_h,
                    const std::string& boundary, bool adjoint, const py::object& out, const py::object& scratch,
                    const PathName& path, std::uintptr_t cuda_stream) {
  const TensorView source = float_view(x, "x"), vertical = float_view(taps_v, "taps_v"),
                   horizontal = float_view(taps_h, "taps_h");
  TensorView target = float_view(out, "out");
  const Planes planes = planes_of(source);
  target.with_shape(source.shape(), "(..., H, W)");
  for (const TensorView* taps : {&vertical, &horizontal}) {
    if (taps->shape().size() != 1 || taps->numel() % 2 == 0) {
      throw py::value_error("`" + std::string(taps->name()) + "` must have shape (K,) with odd K, got " +
                            shape_text(taps->shape()));
    }
  }
  BlurParams params{};
  params.planes = planes.count;
  params.height = planes.height;
  params.width = planes.width;
  params.taps_vertical = vertical.data<float>();
  params.taps_horizontal = horizontal.data<float>();
  params.radius_vertical = vertical.numel() / 2;
  params.radius_horizontal = horizontal.numel() / 2;
  if (boundary == "circular") {
    params.boundary = Boundary::circular;
  } else if (boundary == "reflect") {
    params.boundary = Boundary::reflect;
  } else if (boundary == "replicate") {
    params.boundary = Boundary::replicate;
  } else {
    throw py::value_error("`boundary` must be one of 'circular', 'reflect', 'replicate', got '" + boundary + "'");
  }
  params.adjoint = adjoint;
  params.x = source.data<float>();
  params.out = target.data<float>();
  const Target on = target_of({&source, &vertical, &horizontal, &target}, path, cuda_stream);
  params.threads = on.threads;
  params.queue = on.queue;
  std::unique_ptr<float[]> owned;
  if (source.device().cuda) {
    params.scratch = device_scratch(scratch, source, target);
  } else {
    owned = scratch_for(params.threads, params.scratch_size());
    params.scratch = owned.get();
  }
  if (source.numel()) launch(on.run->separable_blur, params);
}

void spectral(const py::object& c, const py::object& energy, const py::object& data, const py::object& noise_ratio,
              const py::object& out, bool update, const PathName& path, std::uintptr_t cuda_stream) {
  TensorView coefficients(c, "c");
  coefficients.with_dtype(DType::float32, DType::complex64);
  check_axes(coefficients, 1, "(B, ...)");
  const std::int64_t items = coefficients.shape()[0], size = coefficients.item_size();
  TensorView measured(data, "data"), target(out, "out");
  measured.with_dtype(coefficients.dtype()).with_shape(coefficients.shape(), "(B, ...)");
  target.with_dtype(coefficients.dtype()).with_shape(coefficients.shape(), "(B, ...)");
  const TensorView squares = float_view(energy, "energy");
  const std::int64_t energies = squares.shape().empty() ? 0 : squares.shape()[0];
  if ((energies != 1 && energies != items) || squares.item_size() != size) {
    throw py::value_error("`energy` must have shape (1 or B, ...) = (1 or " + std::to_string(items) + ", ...) with " +
                          std::to_string(size) + " elements per item, got " + shape_text(squares.shape()));
  }
  TensorView ratio = float_view(noise_ratio, "noise_ratio");
  ratio.with_shape({items}, "(B,)");
  const Target on = target_of({&coefficients, &squares, &measured, &ratio, &target}, path, cuda_stream);
  launch(on.run->spectral,
         SpectralParams{items, size, coefficients.dtype() == DType::complex64, update, coefficients.data<float>(),
                        squares.data<float>(), energies == 1 ? 0 : size, measured.data<float>(), ratio.data<float>(),
                        target.data<float>(), on.threads, on.queue});
}

void cosine_fold(const py::object& x, const py::object& out, const PathName& path) {
  const TensorView source = float_view(x, "x");
  TensorView target = float_view(out, "out");
  const Planes planes = planes_of(source);
  target.with_shape(source.shape(), "(..., H, W)");
  check_apart(source, target);
  const Target on = processor_of({&source, &target}, path);
  launch(on.run->cosine_fold, CosineParams{planes.count, planes.height, planes.width, nullptr, nullptr,
                                           source.data<float>(), target.data<float>(), on.threads});
}

void cosine_unfold(const py::object& spectrum, const py::object& out, const PathName& path) {
  const TensorView target = float_view(out, "out");
  const Planes planes = planes_of(target);
  const TensorView source = half_spectrum(spectrum, target);
  const Target on = processor_of({&source, &target}, path);
  launch(on.run->cosine_unfold, CosineParams{planes.count, planes.height, planes.width, nullptr, nullptr,
                                             source.data<float>(), target.data<float>(), on.threads});
}

void cosine_turn(const py::object& spectrum, const py::object& turns_v, const py::object& turns_h,
                 const py::object& out, const PathName& path) {
  const TensorView target = float_view(out, "out");
  const Planes planes = planes_of(target);
  const TensorView source = half_spectrum(spectrum, target);
  const TensorView vertical = turns_view(turns_v, "turns_v", planes.height);
  const TensorView horizontal = turns_view(turns_h, "turns_h", planes.width);
  const Target on = processor_of({&source, &vertical, &horizontal, &target}, path);
  launch(on.run->cosine_turn,
         CosineParams{planes.count, planes.height, planes.width, vertical.data<float>(), horizontal.data<float>(),
                      source.data<float>(), target.data<float>(), on.threads});
}

void cosine_turn_back(const py::object& coefficients, const py::object& turns_v, const py::object& turns_h,
                      const PathName& path) {
  const TensorView target = float_view(coefficients, "coefficients");
  const Planes planes = planes_of(target);
  const TensorView vertical = turns_view(turns_v, "turns_v", planes.height);
  const TensorView horizontal = turns_view(turns_h, "turns_h", planes.width);
  const Target on = processor_of({&target, &vertical, &horizontal}, path);
  launch(on.run->cosine_turn_back, CosineParams{planes.count, planes.height, planes.width, vertical.data<float>(),
                                                horizontal.data<float>(), nullptr, target.data<float>(), on.threads});
}

void conjugate_step(const py::object& direction, const py::object& image, const py::object& solution,
                    const py::object& residual, const py::object& squares, const py::object& product,
                    const py::object& least, const PathName& path) {
  const TensorView along = float_view(direction, "direction");
  const TensorView mapped = like(along, image, "image"), found = like(along, solution, "solution"),
                   left = like(along, residual, "residual");
  const std::int64_t items = along.shape()[0];
  const TensorView sizes = doubles(squares, "squares", items), products = doubles(product, "product", items),
                   floors = doubles(least, "least", items);
  const Target on = processor_of({&along, &mapped, &found, &left, &sizes, &products, &floors}, path);
  ConjugateParams params{};
  params.items = items, params.size = along.item_size();
  params.direction = along.data<float>(), params.image = mapped.data<float>();
  params.solution = found.data<float>(), params.residual = left.data<float>();
  params.squares = sizes.data<double>(), params.product = products.data<double>();
  params.least = floors.data<double>();
  launch_sums(on, on.run->conjugate_step, params);
}

void conjugate_turn(const py::object& direction, const py::object& towards, const py::object& residual,
                    const py::object& squares, const py::object& product, const PathName& path) {
  const TensorView along = float_view(direction, "direction");
  const TensorView wanted = like(along, towards, "towards"), left = like(along, residual, "residual");
  const std::int64_t items = along.shape()[0];
  const TensorView sizes = doubles(squares, "squares", items), products = doubles(product, "product", items);
  const Target on = processor_of({&along, &wanted, &left, &sizes, &products}, path);
  ConjugateParams params{};
  params.items = items, params.size = along.item_size();
  params.direction = along.data<float>(), params.towards = wanted.data<float>(), params.residual = left.data<float>();
  params.squares = sizes.data<double>(), params.product = products.data<double>();
  launch_sums(on, on.run->conjugate_turn, params);
}

void biharmonic(const py::object& x, float weight, const py::object& plus, const py::object& out,
                const PathName& path) {
  const TensorView source = float_view(x, "x");
  TensorView added = float_view(plus, "plus"), target = float_view(out, "out");
  const Planes planes = planes_of(source);
  for (TensorView* view : {&added, &target}) view->with_shape(source.shape(), "(..., H, W)");
  check_apart(source, target);
  const Target on = processor_of({&source, &added, &target}, path);
  if (!source.numel()) return;
  BiharmonicParams params{planes.count,        planes.height,        planes.width, weight,    source.data<float>(),
                          added.data<float>(), target.data<float>(), nullptr,      on.threads};
  const auto owned = scratch_for(params.threads, BiharmonicParams::scratch_size(planes.width));
  params.scratch = owned.get();
  launch(on.run->biharmonic, params);
}

void clip_gradient(const py::object& gradient, const py::object& direction, const py::object& limit,
                   const py::object& weight, const py::object& residual, const py::object& out,
                   const py::object& scratch, const PathName& path, std::uintptr_t cuda_stream) {
  const TensorView given = float_view(gradient, "gradient");
  check_axes(given, 1, "(B, ...)");
  TensorView target = float_view(out, "out");
  target.with_shape(given.shape(), "(B, ...)");
  const std::int64_t items = given.shape()[0];
  if (direction.is_none() != limit.is_none() || direction.is_none() != weight.is_none()) {
    throw py::value_error("`direction`, `limit` and `weight` must be given together, or none of them");
  }
  const auto along = optional_view(direction, "direction"), limits = optional_view(limit, "limit"),
             weights = optional_view(weight, "weight"), rest = optional_view(residual, "residual");
  if (along) {
    along->with_shape(given.shape(), "(B, ...)");
    for (TensorView* view : {limits.get(), weights.get()}) view->with_shape({items}, "(B,)");
  }
  if (rest && (rest->shape().empty() || rest->shape()[0] != items)) {
    throw py::value_error("`residual` must have shape (B, ...) = (" + std::to_string(items) + ", ...), got " +
                          shape_text(rest->shape()));
  }
  const Target on =
      target_of({&given, along.get(), limits.get(), weights.get(), rest.get(), &target}, path, cuda_stream);
  ClipParams params{items,
                    given.item_size(),
                    rest ? rest->item_size() : 0,
                    given.data<float>(),
                    data_of(along),
                    data_of(limits),
                    data_of(weights),
                    data_of(rest),
                    target.data<float>(),
                    nullptr,
                    on.threads,
                    on.queue};
  std::unique_ptr<Squares[]> owned;
  if (!given.device().cuda) {
    owned.reset(new Squares[static_cast<std::size_t>(items * params.chunks())]);
    params.squares = owned.get();
  } else if (params.chunks()) {
    if (scratch.is_none()) throw py::value_error("`scratch` must be given for tensors on a CUDA device");
    TensorView lent(scratch, "scratch");
    lent.with_dtype(DType::float64).with_shape({items, params.chunks(), 3}, "(B, chunks, 3)");
    lent.check_device(given.device());
    params.squares = lent.data<Squares>();
  }
  launch(on.run->clip_gradient, params);
}

void normals(const py::object& seeds, std::uint32_t evaluation, std::uint32_t stream, const py::object& out,
             const PathName& path, std::uintptr_t cuda_stream) {
  const TensorView target = float_view(out, "out");
  check_axes(target, 1, "(B, ...)");
  const std::int64_t items = target.shape()[0];
  TensorView keys(seeds, "seeds");
  keys.with_dtype(DType::int64).with_shape({items}, "(B,)");
  const Target on = target_of({&target, &keys}, path, cuda_stream);
  launch(on.run->normals, NormalsParams{items, target.item_size(), keys.data<std::int64_t>(), evaluation, stream,
                                        target.data<float>(), on.threads, on.queue});
}

std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key,
                                    const PathName& path) {
  launchers(path).philox(counter.data(), key.data());
  return counter;
}

}  // namespace rmp
