// A kernel's walk over all values of dense images, one thread each.
#pragma once

#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace cls2det {

struct MapPlace {
  int64_t image, value;  // value: of its image
  int64_t outer, inner;
};

__device__ __forceinline__ MapPlace place_of(const DenseShape& shape, int64_t image, int64_t value) {
  const int64_t outer = divide(value, shape.inner);
  return {image, value, outer, value - outer * shape.inner};
}

// visit(index in all images, place)
template <typename Visit>
__device__ __forceinline__ void each_value(const DenseShape& shape, const Visit& visit) {
  const int64_t area = shape.outer * shape.inner, total = shape.images * area;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < total; i += int64_t(gridDim.x) * kBlock) {
    const int64_t image = divide(i, area);
    visit(i, place_of(shape, image, i - image * area));
  }
}

}  // namespace cls2det
