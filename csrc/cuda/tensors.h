// What the host code of every operator needs, in <op>.cpp beside <op>_kernel.cu: the switch over dtypes, the current device,
// and the device that the operators are registered for.
#pragma once

#include "compat.h"
#include "cuda/current_device.h"
#include "views.h"

// The emulation in tests/emu registers the kernels for the CPU.
#if !defined(CLS2DET_KEY)
#define CLS2DET_KEY CUDA
#endif

namespace cls2det {

// run(S()) with the storage type of `dtype`, which has been checked to be one of the four.
template <typename Run>
auto for_storage(ScalarType dtype, const Run& run) {
  switch (dtype) {
    case ScalarType::Double: return run(double());
    case ScalarType::Half: return run(c10::Half());
    case ScalarType::BFloat16: return run(c10::BFloat16());
    default: return run(float());
  }
}

}  // namespace cls2det
