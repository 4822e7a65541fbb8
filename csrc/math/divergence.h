// The temperature divergences element by element, for scalars on host and device and for SIMD vectors.
//
// a is a logit divided by the temperature, z / T. In names and formulas s is the student and t the teacher. Scalars call
// sigmoid(a). For SIMD vectors the caller computes exponential and logarithm itself and calls sigmoid_of.
#pragma once

#include <cmath>
#include <cstdint>

#include "math/host_device.h"

namespace cls2det {

// The values are those of the schemas' `int background` and `int mode`.
enum class Background : int { none = 0, first = 1, last = 2 };
enum class SigmoidMode : int { bce = 0, l1norm = 1 };

// exp(x) for x <= 0, and log(1 + x) for 0 <= x <= 1.
CLS2DET_HD float exp_nonpositive(float x) { return expf(x); }
CLS2DET_HD double exp_nonpositive(double x) { return exp(x); }
CLS2DET_HD float log1p_unit(float x) { return log1pf(x); }
CLS2DET_HD double log1p_unit(double x) { return log1p(x); }

// p * x with 0 * anything = 0, so that a class of probability zero adds nothing even where its logarithm is infinite.
template <typename V>
CLS2DET_HD V times(V p, V x) {
  return p == V() ? V() : p * x;
}

// sigma(a), 1 - sigma(a), log sigma(a), log(1 - sigma(a)), all exact for large |a|:
// with e = exp(-|a|), sigma(|a|) = 1 / (1 + e) and log sigma(-|a|) = -|a| - log(1 + e).
template <typename V>
struct Sigmoid {
  V on, off, log_on, log_off;
};

template <typename V>
CLS2DET_HD V minus_size(V a) {  // -|a|
  return a < V() ? a : -a;
}

template <typename V>
CLS2DET_HD Sigmoid<V> sigmoid_of(V a, V e, V log1p_e) {
  const V zero = V(), one = V() + 1;
  const V near = one / (one + e), far = e * near;
  const V log_near = -log1p_e, log_far = minus_size(a) - log1p_e;
  Sigmoid<V> s;
  s.on = a < zero ? far : near;
  s.off = a < zero ? near : far;
  s.log_on = a < zero ? log_far : log_near;
  s.log_off = a < zero ? log_near : log_far;
  return s;
}

template <typename T>  // of a scalar
CLS2DET_HD Sigmoid<T> sigmoid(T a) {
  const T e = exp_nonpositive(minus_size(a));
  return sigmoid_of(a, e, log1p_unit(e));
}

// KL of the two-way distributions [S, 1 - S] of one class; its derivative by a_s is S^s - S^t.
template <typename V>
CLS2DET_HD V two_way_kl(const Sigmoid<V>& s, const Sigmoid<V>& t) {
  return times(t.on, t.log_on - s.log_on) + times(t.off, t.log_off - s.log_off);
}

// The student's column of teacher class 0, and its background column (-1: none).
CLS2DET_HD int first_class_column(Background background) { return background == Background::first ? 1 : 0; }
CLS2DET_HD int64_t background_column(Background background, const int64_t& classes) {  // nvcc loads a value in every case
  return background == Background::none ? -1 : background == Background::first ? 0 : classes;
}

}  // namespace cls2det
