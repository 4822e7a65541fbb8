// KL of two softmax rows by one warp. The logits come from two functions of the column, so that they may be read from
// memory or computed (log-sigmoids).
#pragma once

#include <cmath>

#include "cuda/launch.cuh"
#include "math/divergence.h"

namespace cls2det {

template <typename A>
struct SoftmaxRow {
  A max = -INFINITY, sum = 0;

  __device__ A probability(A logit) const { return exp_nonpositive(logit - max) / sum; }
};

// Maximum and sum of exponentials of `columns` logits, the same in every lane.
template <typename A, typename Logit>
__device__ inline SoftmaxRow<A> softmax_row(int64_t columns, const Logit& logit) {
  const int lane = threadIdx.x % kWarp;
  SoftmaxRow<A> row;
  for (int64_t c = lane; c < columns; c += kWarp) {
    const A z = logit(c);
    row.max = z > row.max ? z : row.max;
  }
  row.max = warp_max(row.max);
  for (int64_t c = lane; c < columns; c += kWarp) row.sum += exp_nonpositive(logit(c) - row.max);
  row.sum = warp_sum(row.sum);
  return row;
}

// sum_c P^t (log P^t - log P^s) over the teacher's classes; s(c) and t(c) are the scaled logits of class c.
template <typename A, typename Student, typename Teacher>
__device__ inline A kl_of_rows(
    int64_t classes, const SoftmaxRow<A>& row_s, const Student& s, const SoftmaxRow<A>& row_t, const Teacher& t) {
  A sum = 0;
  for (int64_t c = threadIdx.x % kWarp; c < classes; c += kWarp) {
    const A a_s = s(c) - row_s.max, a_t = t(c) - row_t.max;
    sum += times(exp_nonpositive(a_t), a_t - a_s);
  }
  return warp_sum(sum) / row_t.sum - log(row_t.sum) + log(row_s.sum);
}

}  // namespace cls2det
