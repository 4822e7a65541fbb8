// The host code of frozen_stem on CUDA.
#include "frozen_stem.h"

#include "cuda/frozen_stem_kernel.h"
#include "cuda/tensors.h"

namespace cls2det {
namespace {

std::tuple<Tensor, Tensor> forward(
    const StemShape& shape, const Tensor& images, const Tensor& weight, const Tensor& bias, bool need_grad) {
  const CurrentDevice device(images);
  const ScalarType dtype = images.scalar_type(), acc = accumulate_dtype(dtype);
  const Tensor from = packed(images), kernel = packed(weight, acc), offset = packed(bias, acc);
  const Shape sizes{shape.images, shape.channels, shape.out_h, shape.out_w};
  Tensor out = make(images, sizes, dtype), index = make(images, need_grad ? sizes : Shape{0}, ScalarType::Byte);
  for_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    using T = Accumulate<S>;
    stem(
        shape, data<const S>(from), data<const T>(kernel), data<const T>(offset), data<S>(out),
        need_grad ? data<uint8_t>(index) : nullptr, device.stream());
  });
  device.check_launch();
  return {out, index};
}

Tensor backward(const StemShape& shape, const Tensor& grad, const Tensor& index, const Tensor& weight) {
  const CurrentDevice device(grad);
  const ScalarType dtype = grad.scalar_type();
  const Tensor upstream = packed(grad, dtype), chosen = packed(index);
  const Tensor kernel = packed(weight, accumulate_dtype(dtype));
  Tensor out = make(grad, {shape.images, shape.inputs, shape.height, shape.width}, dtype);
  for_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    stem_backward(
        shape, data<const S>(upstream), data<const uint8_t>(chosen), data<const Accumulate<S>>(kernel), data<S>(out),
        device.stream());
  });
  device.check_launch();
  return out;
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CLS2DET_KEY, m) {
  m.impl("frozen_stem", TORCH_BOX(&cls2det::frozen_stem<cls2det::forward>));
  m.impl("frozen_stem_backward", TORCH_BOX(&cls2det::frozen_stem_backward<cls2det::backward>));
}
