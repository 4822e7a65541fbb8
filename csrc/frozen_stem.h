// What the two back ends of frozen_stem share: its shape, and the loop over chunks of images, whose convolution is torch's.
#pragma once

#include <array>
#include <tuple>

#include "checks.h"
#include "math/stem_shape.h"

namespace cls2det {

inline StemShape stem_shape(
    const Tensor& weight, int64_t images, int64_t height, int64_t width, int64_t stride, int64_t padding) {
  StemShape s{};
  s.images = images;
  s.channels = int(weight.size(0)), s.inputs = int(weight.size(1));
  s.kernel_h = int(weight.size(2)), s.kernel_w = int(weight.size(3));
  s.height = int(height), s.width = int(width);
  s.stride = int(stride), s.padding = int(padding);
  s.conv_h = (s.height + 2 * s.padding - s.kernel_h) / s.stride + 1;
  s.conv_w = (s.width + 2 * s.padding - s.kernel_w) / s.stride + 1;
  s.out_h = (s.conv_h - 1) / 2 + 1;
  s.out_w = (s.conv_w - 1) / 2 + 1;
  return s;
}

inline Tensor convolution(const Tensor& images, const Tensor& weight, const Tensor& bias, int64_t stride, int64_t padding) {
  using torch::stable::detail::from;
  const Shape strides{stride, stride}, paddings{padding, padding}, dilation{1, 1}, none{0, 0};
  std::array<StableIValue, 9> stack{from(images),   from(weight), from(std::optional<Tensor>(bias)), from(strides), from(paddings),
                                    from(dilation), from(false),  from(none),                        from(int64_t(1))};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// (out, index) of images in `dtype`. pool(conv, first, out, index) does what follows the convolution of images [first, ...).
// bytes: what the convolution of one chunk may take; it bounds the memory, and on a CPU keeps it in the caches.
template <typename Pool>
std::tuple<Tensor, Tensor> frozen_stem_chunks(
    const Tensor& images, const Tensor& weight, const Tensor& bias, const StemShape& shape, ScalarType dtype, bool need_grad,
    int64_t bytes, const Pool& pool) {
  const Shape sizes{shape.images, shape.channels, shape.out_h, shape.out_w};
  Tensor out = make(images, sizes, dtype), index = make(images, need_grad ? sizes : Shape{0}, ScalarType::Byte);
  const int64_t one = int64_t(shape.channels) * shape.conv_h * shape.conv_w * int64_t(images.element_size());
  const int64_t fit = bytes / (one > 0 ? one : 1), step = fit > 1 ? fit : 1;
  for (int64_t first = 0; first < shape.images && out.numel() > 0; first += step) {
    Tensor all = images;
    const int64_t count = shape.images - first < step ? shape.images - first : step;
    pool(convolution(torch::stable::narrow(all, 0, first, count), weight, bias, shape.stride, shape.padding), first, out, index);
  }
  return {out, index};
}

}  // namespace cls2det
