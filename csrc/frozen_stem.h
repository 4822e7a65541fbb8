// What the two back ends of frozen_stem share: its shape.
#pragma once

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

}  // namespace cls2det
