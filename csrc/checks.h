// Checks of the raw operators' arguments. The public Python functions check first, with better messages. The checks of one
// operator are in csrc/<op>.h.
#pragma once

#include <initializer_list>
#include <sstream>
#include <stdexcept>

#include "compat.h"
#include "math/feature_distance.h"

namespace cls2det {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message << "cls2det: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline void check_dim(const char* name, const Tensor& tensor, int64_t dim) {
  if (tensor.dim() != dim) fail(name, " must have ", dim, " dimensions, found ", tensor.dim());
}

inline void check_size(const char* name, const Tensor& tensor, int64_t dim, int64_t size) {
  if (tensor.size(dim) != size) fail(name, " must be of size ", size, " in dimension ", dim, ", found ", tensor.size(dim));
}

inline void check_dtype(const char* name, const Tensor& tensor, ScalarType dtype) {
  if (tensor.scalar_type() != dtype) {
    fail(name, " must have dtype ", toString(dtype), ", found ", toString(tensor.scalar_type()));
  }
}

inline void check_floating(const char* name, const Tensor& tensor) {
  const ScalarType t = tensor.scalar_type();
  if (t != ScalarType::Float && t != ScalarType::Double && t != ScalarType::Half && t != ScalarType::BFloat16) {
    fail(name, " must be float32, float64, float16 or bfloat16, found ", toString(t));
  }
}

inline void check_index(const char* name, const Tensor& tensor, int64_t length) {
  check_dim(name, tensor, 1);
  check_size(name, tensor, 0, length);
  check_dtype(name, tensor, ScalarType::Long);
}

inline void check_map(const char* name, const Tensor& map) {
  check_dim(name, map, 4);
  check_floating(name, map);
  if (map.size(2) < 1 || map.size(3) < 1) fail(name, " must be of at least one pixel");
  if (map.size(2) > INT32_MAX / 4 || map.size(3) > INT32_MAX / 4) fail(name, " is too large along one axis");
}

inline void check_boxes(const char* name, const Tensor& boxes, const Tensor& map) {
  check_dim(name, boxes, 2);
  check_size(name, boxes, 1, 4);
  check_dtype(name, boxes, accumulate_dtype(map.scalar_type()));
}

inline void check_positive(const char* name, double value) {
  if (!(value > 0)) fail(name, " must be positive, found ", value);
}

inline void check_sizes(int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w) {
  const int64_t limit = 4096;  // keeps every product of two sizes well inside an int
  if (out_h < 1 || out_w < 1 || samples_h < 1 || samples_w < 1) fail("output and sampling sizes must be positive");
  if (out_h > limit || out_w > limit || samples_h > limit || samples_w > limit) fail("output and sampling sizes are too large");
}

inline void check_together(const Tensor& first, std::initializer_list<Tensor> others) {
  for (const Tensor& other : others) {
    if (other.is_cuda() != first.is_cuda() || other.get_device_index() != first.get_device_index()) {
      fail("all tensors must be on one device");
    }
  }
}

inline void check_grad_rows(const Tensor& grad_rows, const Tensor& rows) {
  check_dim("grad_rows", grad_rows, 1);
  check_size("grad_rows", grad_rows, 0, rows.size(0));
  check_together(rows, {grad_rows});
}

// An option that a schema has as a number: an enum whose values count from 0 to `last`.
template <typename Option>
Option to_option(const char* name, int64_t value, Option last) {
  if (value < 0 || value > int64_t(last)) fail(name, " must be 0 to ", int64_t(last), ", found ", value);
  return Option(value);
}

inline Distance to_distance(int64_t loss) { return to_option("loss", loss, Distance::smooth_l1); }

}  // namespace cls2det
