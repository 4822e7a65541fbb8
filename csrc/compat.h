// The stable part of libtorch that the operators use, and the little that it lacks.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <tuple>
#include <vector>

#if !defined(TORCH_TARGET_VERSION)
#error "build with -DTORCH_TARGET_VERSION=0x020b000000000000: without it the library is bound to the torch it was built with"
#endif

namespace cls2det {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

inline Tensor make(const Tensor& like, const Shape& shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

inline Tensor make_zeros(const Tensor& like, const Shape& shape, ScalarType dtype) {
  return torch::stable::new_zeros(like, shape, dtype);
}

inline Shape shape_of(const Tensor& tensor) {
  Shape shape;
  for (int64_t d = 0; d < tensor.dim(); ++d) shape.push_back(tensor.size(d));
  return shape;
}

inline Tensor to_dtype(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// float64 for float64, float32 for everything else: the dtype of sums, boxes and losses.
inline ScalarType accumulate_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace cls2det
