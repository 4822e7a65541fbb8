// The Python module of the library: its build record. Each operator registers itself: its schema and CPU kernels in
// cpu/<op>_kernel.cpp, its CUDA kernels in cuda/<op>.cpp of the other library.
//
// The meaning of each operator is documented at its public function, cls2det_ops/ops/<op>.py. Conventions of the schemas: boxes
// xyxy in accumulate dtype (float32; float64 for float64 maps), indices int64; options as the numbers of the enums Distance,
// Background, SigmoidMode and Assignment in math/. An output that a need_ flag leaves out is an empty tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "cpu/simd_level.h"

#define CLS2DET_STRING_(x) #x
#define CLS2DET_STRING(x) CLS2DET_STRING_(x)

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels and operator schemas of cls2det_ops";
  m.def(
      "build_info",
      [] {
        return std::map<std::string, std::string>{
            {"compiler", __VERSION__},
            {"build_torch", CLS2DET_BUILD_TORCH},
            {"torch_target", CLS2DET_STRING(TORCH_TARGET_VERSION)},
            {"cuda_version", CLS2DET_CUDA_VERSION},
            {"cuda_archs", CLS2DET_CUDA_ARCHS},
            {"cuda_missing", CLS2DET_CUDA_MISSING},
        };
      },
      "How this library was built.");
  m.def("cpu_capability", [] { return std::string(cls2det::simd_level_name()); }, "The instruction set in use.");
}
