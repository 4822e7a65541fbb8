// The stable part of libtorch that the operators use, and the little that it lacks.
#pragma once

#include "old_systems.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if !defined(TORCH_TARGET_VERSION)
#error "build with -DTORCH_TARGET_VERSION=0x020b000000000000: without it the library is bound to the torch it was built with"
#endif

#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)  // torch 2.11 has it under the older name, which does not tell the cause
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

// The name of torch.ops under which the operators are registered, see setup.py. The emulation in tests/emu has one of its own.
#if !defined(CLS2DET_NAMESPACE)
#define CLS2DET_NAMESPACE cls2det
#endif

namespace cls2det {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

// The first write to a fresh page of 4 KiB enters the kernel, which for a large result costs more than computing it. So this
// asks for pages of 2 MiB, where the system leaves the choice to programs (transparent_hugepage/enabled: madvise).
inline void prefer_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 1 << 21;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + uintptr_t(bytes)) / page * page;
  if (first < last)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: nothing changes where it fails
#else
  (void)memory, (void)bytes;
#endif
}

constexpr int64_t kHugeFrom = 4 << 20;  // bytes; smaller memory mostly comes from what malloc has kept

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
  const Tensor tensor(made);
  const int64_t bytes = tensor.numel() * tensor.element_size();
  if (bytes >= kHugeFrom && device == aoti_torch_device_type_cpu()) prefer_huge_pages(tensor.data_ptr(), bytes);
  return tensor;
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

inline Shape shape_of(const Tensor& tensor) {
  Shape shape;
  for (int64_t d = 0; d < tensor.dim(); ++d) shape.push_back(tensor.size(d));
  return shape;
}

inline Tensor to_dtype(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// Contiguous and of this dtype; nothing is called where it is so already, and a large copy gets large pages.
inline Tensor packed(const Tensor& tensor, ScalarType dtype) {
  if (tensor.is_contiguous() && tensor.scalar_type() == dtype) return tensor;
  Tensor copy = make(tensor, shape_of(tensor), dtype);
  torch::stable::copy_(copy, tensor);
  return copy;
}

inline Tensor packed(const Tensor& tensor) { return packed(tensor, tensor.scalar_type()); }

// float64 for float64, float32 for everything else: the dtype of sums, boxes and losses.
inline ScalarType accumulate_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

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
