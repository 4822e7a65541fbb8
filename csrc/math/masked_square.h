// The squared difference x under a mask and its derivative, for scalars and for SIMD vectors.
#pragma once

#include "math/host_device.h"

namespace cls2det {

// mask * x^2; a mask of 0 leaves the value out, even if it is NaN.
template <typename V>
CLS2DET_HD V masked_square(V mask, V x) {
  return mask == V() ? V() : mask * x * x;
}

template <typename V>
CLS2DET_HD V masked_square_slope(V mask, V x) {
  return mask == V() ? V() : (mask + mask) * x;
}

}  // namespace cls2det
