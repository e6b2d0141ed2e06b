// The module's table of contents; no logic here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "csrc/dispatch.h"
#include "csrc/natural_step.h"
#include "csrc/operators.h"

namespace py = pybind11;
using namespace py::literals;

PYBIND11_MODULE(_core, m) {
  m.doc() = "Compiled kernels of rmp_fast.";

  // Asked for here so that a wrong RMP_FAST_CPU is reported when the module is imported.
  rmp::cpu_path();
  m.def("cpu_path", &rmp::cpu_path);
  m.def("cpu_paths", &rmp::cpu_paths);

  m.def("cuda_problem", [] {
    const std::string problem = rmp::cuda_problem();
    return problem.empty() ? std::optional<std::string>() : problem;
  });

  // Local: another build of this module may live in the same process.
  py::class_<rmp::NaturalStep>(m, "NaturalStep", py::module_local())
      .def(py::init([](py::object previous, py::object mean, py::object next_mean, py::object input,
                       py::object input_mirror, py::object looks, py::object seeds, py::object ok, py::object curvature,
                       bool drawn, const std::string& correction, py::object y, py::object mask, std::int64_t factor,
                       bool antithetic, std::uint32_t stream, const rmp::PathName& path) {
             return std::make_unique<rmp::NaturalStep>(
                 rmp::NaturalStep::Buffers{previous, mean, next_mean, input, input_mirror, looks, seeds, ok, curvature,
                                           y, mask},
                 drawn, correction, factor, antithetic, stream, path);
           }),
           py::kw_only(), "previous"_a, "mean"_a, "next_mean"_a, "input"_a, "input_mirror"_a = py::none(), "looks"_a,
           "seeds"_a, "ok"_a, "curvature"_a = py::none(), "drawn"_a = false, "correction"_a = "none",
           "y"_a = py::none(), "mask"_a = py::none(), "factor"_a = 1, "antithetic"_a = false, "stream"_a = 0,
           "path"_a = py::none())
      .def("step", &rmp::NaturalStep::step, "look"_a, "denoised"_a, "denoised_mirror"_a = 0,
           "evaluation"_a = py::none(), "cuda_stream"_a = 0)
      .def("perturb", &rmp::NaturalStep::perturb, "look"_a, "evaluation"_a, "cuda_stream"_a = 0);

  m.def("mask", &rmp::mask, "x"_a, "mask"_a, "out"_a, py::kw_only(), "path"_a = py::none(), "cuda_stream"_a = 0);
  m.def("block_average", &rmp::block_average, "x"_a, "factor"_a, "out"_a, py::kw_only(), "path"_a = py::none(),
        "cuda_stream"_a = 0);
  m.def("block_average_adjoint", &rmp::block_average_adjoint, "y"_a, "factor"_a, "out"_a, py::kw_only(),
        "path"_a = py::none(), "cuda_stream"_a = 0);
  m.def("separable_blur", &rmp::separable_blur, "x"_a, "taps_v"_a, "taps_h"_a, "boundary"_a, "adjoint"_a, "out"_a,
        py::kw_only(), "scratch"_a = py::none(), "path"_a = py::none(), "cuda_stream"_a = 0);
  m.def("spectral", &rmp::spectral, "c"_a, "energy"_a, "data"_a, "noise_ratio"_a, "out"_a, "update"_a, py::kw_only(),
        "path"_a = py::none(), "cuda_stream"_a = 0);
  m.def("cosine_fold", &rmp::cosine_fold, "x"_a, "out"_a, py::kw_only(), "path"_a = py::none());
  m.def("cosine_unfold", &rmp::cosine_unfold, "spectrum"_a, "out"_a, py::kw_only(), "path"_a = py::none());
  m.def("cosine_turn", &rmp::cosine_turn, "spectrum"_a, "turns_v"_a, "turns_h"_a, "out"_a, py::kw_only(),
        "path"_a = py::none());
  m.def("cosine_turn_back", &rmp::cosine_turn_back, "coefficients"_a, "turns_v"_a, "turns_h"_a, py::kw_only(),
        "path"_a = py::none());
  m.def("conjugate_step", &rmp::conjugate_step, "direction"_a, "image"_a, "solution"_a, "residual"_a, "squares"_a,
        "product"_a, "least"_a, py::kw_only(), "path"_a = py::none());
  m.def("conjugate_turn", &rmp::conjugate_turn, "direction"_a, "towards"_a, "residual"_a, "squares"_a, "product"_a,
        py::kw_only(), "path"_a = py::none());
  m.def("biharmonic", &rmp::biharmonic, "x"_a, "weight"_a, "plus"_a, "out"_a, py::kw_only(), "path"_a = py::none());
  m.def("clip_gradient", &rmp::clip_gradient, "gradient"_a, "direction"_a, "limit"_a, "weight"_a, "residual"_a, "out"_a,
        py::kw_only(), "scratch"_a = py::none(), "path"_a = py::none(), "cuda_stream"_a = 0);
  m.def("normals", &rmp::normals, "seeds"_a, "evaluation"_a, "stream"_a, "out"_a, py::kw_only(), "path"_a = py::none(),
        "cuda_stream"_a = 0);
  m.def("philox", &rmp::philox, "counter"_a, "key"_a, py::kw_only(), "path"_a = py::none());
}
