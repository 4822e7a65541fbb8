// The stable part of libtorch that the operators use, and the little that it lacks.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <stdexcept>
#include <tuple>
#include <vector>

#if !defined(TORCH_TARGET_VERSION)
#error "build with -DTORCH_TARGET_VERSION=0x020b000000000000: without it the library is bound to the torch it was built with"
#endif

namespace cls2det {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

// An uninitialised contiguous tensor on the device of `like`, without a look-up of the operator by name.
inline Tensor make(const Tensor& like, const Shape& shape, ScalarType dtype) {
  Shape strides(shape.size(), 1);
  for (size_t d = shape.size(); d-- > 1;) {
    if (__builtin_mul_overflow(strides[d], shape[d] > 1 ? shape[d] : 1, &strides[d - 1])) {
      throw std::runtime_error("cls2det: the result is too large");
    }
  }
  int32_t device = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  const int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(shape.size()), shape.data(), strides.data(), code, device, like.get_device_index(), &made));
  return Tensor(made);
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

// Contiguous; nothing is called where it is so already.
inline Tensor packed(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

inline Tensor packed(const Tensor& tensor, ScalarType dtype) { return packed(to_dtype(tensor, dtype)); }

// float64 for float64, float32 for everything else: the dtype of sums, boxes and losses.
inline ScalarType accumulate_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace cls2det
