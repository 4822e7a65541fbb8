// The element-wise distances of the feature losses and their derivatives, for scalars and for SIMD vectors.
#pragma once

#include "math/host_device.h"

namespace cls2det {

enum Distance { kL1 = 0, kL2 = 1, kSmoothL1 = 2 };

// d(x) for the difference x; smooth-L1: x^2 / (2 beta) below beta, |x| - beta / 2 above.
template <typename V, typename T>
CLS2DET_HD V distance(V x, int kind, T beta) {
  const V zero = V();
  const V size = x < zero ? -x : x;  // NaN stays NaN
  if (kind == kL1) return size;
  if (kind == kL2) return x * x;
  return size < beta + zero ? x * x * (T(0.5) / beta) : size - T(0.5) * beta;
}

// d'(x), with |.|'(0) = 0.
template <typename V, typename T>
CLS2DET_HD V distance_slope(V x, int kind, T beta) {
  const V zero = V();
  const V sign = x > zero ? zero + T(1) : (x < zero ? zero - T(1) : x);  // 0, or NaN
  if (kind == kL1) return sign;
  if (kind == kL2) return T(2) * x;
  const V size = x < zero ? -x : x;
  return size < beta + zero ? x * (T(1) / beta) : sign;
}

}  // namespace cls2det
