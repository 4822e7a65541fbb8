// scale_rows on the CPU: the backward of every loss whose forward left the gradient of its rows behind.
#include "scale_rows.h"

#include <algorithm>

namespace cls2det {
namespace {

template <typename T>
Tensor run(const Tensor& grad_rows, const Tensor& row_grads, T factor) {
  const int64_t count = row_grads.size(0), width = count ? row_grads.numel() / count : 0;
  Tensor out = make(row_grads, shape_of(row_grads), row_grads.scalar_type());
  const T* upstream = data<const T>(grad_rows);
  const int64_t stride = count ? grad_rows.stride(0) : 0;
  const T* in = data<const T>(row_grads);
  T* result = data<T>(out);
  torch::stable::parallel_for(0, count, 1 + 16384 / (width + 1), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const T g = factor * upstream[k * stride];
      const T* from = in + k * width;
      T* to = result + k * width;
      if (g == T(0)) {  // so is the result, even if the row's gradient is NaN
        std::fill(to, to + width, T(0));
      } else {
        for (int64_t i = 0; i < width; ++i) to[i] = g * from[i];
      }
    }
  });
  return out;
}

Tensor scale_rows(Tensor grad_rows, Tensor row_grads, Tensor input, double factor) {
  check_scale_rows(grad_rows, row_grads, input);
  const ScalarType dtype = input.scalar_type(), acc = accumulate_dtype(dtype);
  const Tensor upstream = to_dtype(grad_rows, acc), rows = packed(row_grads, acc);
  return to_dtype(
      acc == ScalarType::Double ? run<double>(upstream, rows, factor) : run<float>(upstream, rows, float(factor)), dtype);
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_FRAGMENT(CLS2DET_NAMESPACE, m) {
  // factor * grad_rows[k] * row_grads[k, ...] in the dtype of input, which is an argument so that a second derivative can be
  // refused
  m.def("scale_rows(Tensor grad_rows, Tensor row_grads, Tensor input, float factor) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CPU, m) { m.impl("scale_rows", TORCH_BOX(&cls2det::scale_rows)); }
