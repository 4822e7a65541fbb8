// What the library says of itself. It knows no Python: Python loads it with torch.ops.load_library and asks these C functions
// (cls2det_ops/_library.py). Each operator registers itself: its schema and CPU kernels in cpu/<op>_kernel.cpp, its CUDA
// kernels in cuda/<op>.cpp of the other library.
//
// The meaning of each operator is documented at its public function, cls2det_ops/ops/<op>.py. Conventions of the schemas: boxes
// xyxy in accumulate dtype (float32; float64 for float64 maps), indices int64; options as the numbers of the enums Distance,
// Background, SigmoidMode and Assignment in math/. An output that a need_ flag leaves out is an empty tensor.
#include "compat.h"
#include "cpu/simd_level.h"

#define CLS2DET_STRING_(x) #x
#define CLS2DET_STRING(x) CLS2DET_STRING_(x)

#if defined(_WIN32)
#define CLS2DET_EXPORT extern "C" __declspec(dllexport)
#else
#define CLS2DET_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// How this library was built, one "name=value" per line.
CLS2DET_EXPORT const char* cls2det_build_info() {
  // clang-format off
  return "compiler=" __VERSION__
         "\nbuild_torch=" CLS2DET_BUILD_TORCH
         "\ntorch_target=" CLS2DET_STRING(TORCH_TARGET_VERSION)
         "\nnamespace=" CLS2DET_STRING(CLS2DET_NAMESPACE)
         "\ncuda_version=" CLS2DET_CUDA_VERSION
         "\ncuda_archs=" CLS2DET_CUDA_ARCHS
         "\ncuda_missing=" CLS2DET_CUDA_MISSING;
  // clang-format on
}

// The instruction set in use.
CLS2DET_EXPORT const char* cls2det_cpu_capability() { return cls2det::simd_level_name(); }
