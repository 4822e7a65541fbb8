// Sizes of a stem: convolution, ReLU and the 3 x 3 max-pool of stride 2 and padding 1 that follows.
#pragma once

#include <cstdint>

#include "math/host_device.h"

namespace cls2det {

constexpr int kMostKernel = 8;  // of the convolution, along each axis
constexpr int kWindow = 3;      // of the max-pool
constexpr uint8_t kDead = 255;  // in place of the index of a pool whose result is 0: ReLU passes no gradient

struct StemShape {
  int64_t images;
  int channels, inputs;  // of the convolution's output, and of the images
  int height, width;     // of an image
  int kernel_h, kernel_w, stride, padding;
  int conv_h, conv_w, out_h, out_w;
};

// Along one axis, pool p covers the positions 2 p - 1, 2 p and 2 p + 1 of the convolution. Finds the pool p in which y is
// position k = 0, 1 or 2; false if there is none.
CLS2DET_HD bool pool_of(int y, int k, int pools, int& p) {
  p = (y + 1 - k) / 2;
  return y + 1 - k >= 0 && (y + 1 - k) % 2 == 0 && p < pools;
}

}  // namespace cls2det
