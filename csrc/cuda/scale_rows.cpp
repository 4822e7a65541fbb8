// The host code of scale_rows on CUDA.
#include "scale_rows.h"

#include "cuda/scale_rows_kernel.h"
#include "cuda/tensors.h"

namespace cls2det {
namespace {

Tensor scale_rows(Tensor grad_rows, Tensor row_grads, Tensor input, double factor) {
  check_scale_rows(grad_rows, row_grads, input);
  const CurrentDevice device(input);
  const ScalarType dtype = input.scalar_type();
  const Tensor upstream = to_dtype(grad_rows, accumulate_dtype(dtype)), grads = packed(row_grads, dtype);
  Tensor out = make(grads, shape_of(grads), dtype);
  const int64_t count = grads.size(0), width = count ? grads.numel() / count : 0;
  for_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    multiply_rows(
        data<const Accumulate<S>>(upstream), upstream.stride(0), Accumulate<S>(factor), data<const S>(grads), count, width,
        data<S>(out), device.stream());
  });
  device.check_launch();
  return out;
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CLS2DET_KEY, m) { m.impl("scale_rows", TORCH_BOX(&cls2det::scale_rows)); }
