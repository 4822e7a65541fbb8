// What the two back ends of frozen_stem share: its checks and its sizes.
#pragma once

#include "checks.h"
#include "math/stem_shape.h"

namespace cls2det {

// So that every place of the convolution reads at least one pixel, and all sizes are within the kernels' limits.
inline void check_stem_sizes(const Tensor& weight, int64_t height, int64_t width, int64_t stride, int64_t padding) {
  check_dim("weight", weight, 4);
  check_floating("weight", weight);
  const int64_t kernel_h = weight.size(2), kernel_w = weight.size(3), smaller = kernel_h < kernel_w ? kernel_h : kernel_w;
  if (smaller < 1 || kernel_h > kMostKernel || kernel_w > kMostKernel) fail("weight must have a kernel of 1 to ", kMostKernel);
  if (stride < 1 || stride > kMostKernel) fail("stride must be 1 to ", kMostKernel, ", found ", stride);
  if (padding < 0 || padding >= smaller) fail("padding must be 0 or more and less than the kernel, found ", padding);
  if (height + 2 * padding < kernel_h || width + 2 * padding < kernel_w) fail("images must be at least as large as the kernel");
}

inline void check_stem(const Tensor& images, const Tensor& weight, const Tensor& bias, int64_t stride, int64_t padding) {
  check_map("images", images);
  check_stem_sizes(weight, images.size(2), images.size(3), stride, padding);
  check_size("weight", weight, 1, images.size(1));
  check_dtype("weight", weight, images.scalar_type());
  check_dim("bias", bias, 1);
  check_size("bias", bias, 0, weight.size(0));
  check_dtype("bias", bias, images.scalar_type());
  check_together(images, {weight, bias});
}

inline void check_stem_backward(
    const Tensor& grad, const Tensor& index, const Tensor& weight, int64_t height, int64_t width, int64_t stride,
    int64_t padding) {
  check_map("grad", grad);
  check_stem_sizes(weight, height, width, stride, padding);
  check_size("grad", grad, 1, weight.size(0));
  check_dim("index", index, 4);
  check_dtype("index", index, ScalarType::Byte);
  for (int64_t d = 0; d < 4; ++d) check_size("index", index, d, grad.size(d));
  const int64_t sides[] = {height, width};
  for (int64_t d : {2, 3}) {
    check_size("grad", grad, d, (sides[d - 2] + 2 * padding - weight.size(d)) / stride / 2 + 1);
  }
  check_together(grad, {index, weight});
}

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

// The operators with the arguments of their schemas. They check these and call Run, the implementation of one back end.
template <auto Run>
std::tuple<Tensor, Tensor> frozen_stem(
    Tensor images, Tensor weight, Tensor bias, int64_t stride, int64_t padding, bool need_grad) {
  check_stem(images, weight, bias, stride, padding);
  return Run(
      stem_shape(weight, images.size(0), images.size(2), images.size(3), stride, padding), images, weight, bias, need_grad);
}

template <auto Run>
Tensor frozen_stem_backward(
    Tensor grad, Tensor index, Tensor weight, int64_t height, int64_t width, int64_t stride, int64_t padding) {
  check_stem_backward(grad, index, weight, height, width, stride, padding);
  return Run(stem_shape(weight, grad.size(0), height, width, stride, padding), grad, index, weight);
}

}  // namespace cls2det
