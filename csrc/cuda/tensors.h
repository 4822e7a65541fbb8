// Tensors as the launchers want them, for the files that know torch: operators.cpp and map_operators.cpp.
#pragma once

#include "checks.h"
#include "cuda/current_device.h"
#include "cuda/kernels.h"

// The emulation in tests/emu registers the operators once more under a name of its own.
#ifndef CLS2DET_NAMESPACE
#define CLS2DET_NAMESPACE cls2det
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

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <typename S>
MapView<S> view(const Tensor& map) {
  return {data<const S>(map), map.size(0),   map.size(1),      map.stride(0),   map.stride(1),
          map.stride(2),      map.stride(3), int(map.size(2)), int(map.size(3))};
}

struct Boxes {  // contiguous
  Tensor boxes, image_index;

  Boxes(const Tensor& b, const Tensor& index) : boxes(packed(b)), image_index(packed(index)) {}

  template <typename T>
  BoxList<T> list(double scale) const {
    return {data<const T>(boxes), data<const int64_t>(image_index), boxes.size(0), T(scale)};
  }
};

}  // namespace cls2det
