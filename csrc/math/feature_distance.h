// The element-wise distances of the feature losses and their derivatives, for scalars and for SIMD vectors.
#pragma once

#include "math/host_device.h"

namespace cls2det {

// The values are those of the schemas' `int loss`.
enum class Distance : int { l1 = 0, l2 = 1, smooth_l1 = 2 };

// |x| and its derivative, 0 at 0; NaN stays NaN.
template <typename V>
CLS2DET_HD V magnitude(V x) {
  return x < V() ? -x : x;
}

template <typename V>
CLS2DET_HD V sign(V x) {
  const V zero = V(), one = zero + 1;
  return x > zero ? one : (x < zero ? -one : x);
}

// d(x) for the difference x; smooth-L1: x^2 / (2 beta) below beta, |x| - beta / 2 above.
template <typename V, typename T>
CLS2DET_HD V distance(V x, Distance kind, T beta) {
  const V size = magnitude(x);
  if (kind == Distance::l1) return size;
  if (kind == Distance::l2) return x * x;
  return size < beta + V() ? x * x * (T(0.5) / beta) : size - T(0.5) * beta;
}

// d'(x)
template <typename V, typename T>
CLS2DET_HD V distance_slope(V x, Distance kind, T beta) {
  if (kind == Distance::l1) return sign(x);
  if (kind == Distance::l2) return T(2) * x;
  return magnitude(x) < beta + V() ? x * (T(1) / beta) : sign(x);
}

}  // namespace cls2det
