// One row of logits per warp: each lane holds the classes lane, lane + 32, ... of the student's row and of the teacher's row
// that it is matched to.
#pragma once

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "math/divergence.h"

namespace cls2det {

// kHeld > 0: both rows are kept in registers, kHeld values per lane. kHeld = 0: any length, read again in each pass.
template <typename S, int kHeld>
struct LogitsRow {
  using T = Accumulate<S>;
  const S *student, *teacher;  // class 0
  int64_t student_column, teacher_column, classes;
  T held_s[kHeld > 0 ? kHeld : 1], held_t[kHeld > 0 ? kHeld : 1];

  // change(z): what stands for each logit from here on
  template <typename Change>
  __device__ void load(const Change& change) {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const int64_t c = threadIdx.x % kWarp + i * kWarp;
        held_s[i] = c < classes ? change(static_cast<T>(student[c * student_column])) : T(0);
        held_t[i] = c < classes ? change(static_cast<T>(teacher[c * teacher_column])) : T(0);
      }
    }
  }

  // visit(class, student, teacher) for the classes of this lane
  template <typename Change, typename Visit>
  __device__ void each(const Change& change, const Visit& visit) const {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const int64_t c = threadIdx.x % kWarp + i * kWarp;
        if (c < classes) visit(c, held_s[i], held_t[i]);
      }
    } else {
      for (int64_t c = threadIdx.x % kWarp; c < classes; c += kWarp) {
        visit(c, change(static_cast<T>(student[c * student_column])), change(static_cast<T>(teacher[c * teacher_column])));
      }
    }
  }
};

// KL of softmax(teacher * scale) from softmax(student * scale), the student's with one logit more where `background` is not
// null:  KL = sum_c P^t (a^t - a^s) - log sum exp a^t + log sum exp a^s,  a = scale (z - max z).
// gradient(class, z^s, P^s - P^t) for every class of this lane; returns {KL, P^s of the background} in all lanes.
template <typename S, int kHeld, typename Change, typename Gradient>
__device__ __forceinline__ void kl_row(
    const LogitsRow<S, kHeld>& row, const Change& change, const Accumulate<S>* background, Accumulate<S> scale,
    Accumulate<S>* kl, Accumulate<S>* background_share, bool need_grad, const Gradient& gradient) {
  using T = Accumulate<S>;
  T max_s = T(-INFINITY), max_t = max_s;
  row.each(change, [&](int64_t, T s, T t) {
    max_s = s > max_s ? s : max_s;
    max_t = t > max_t ? t : max_t;
  });
  max_s = lanes_max(max_s);
  max_t = lanes_max(max_t);
  if (background && *background > max_s) max_s = *background;

  T sum_s = T(0), sum_t = T(0), cross = T(0);
  row.each(change, [&](int64_t, T s, T t) {
    const T a_s = (s - max_s) * scale, a_t = (t - max_t) * scale, e_t = exp_nonpositive(a_t);
    sum_s += exp_nonpositive(a_s);
    sum_t += e_t;
    cross += times(e_t, a_t - a_s);
  });
  const T e_background = background ? exp_nonpositive((*background - max_s) * scale) : T(0);
  sum_s = lanes_sum(sum_s) + e_background;
  sum_t = lanes_sum(sum_t);
  cross = lanes_sum(cross);
  *kl = cross / sum_t - std::log(sum_t) + std::log(sum_s);
  *background_share = e_background / sum_s;

  if (need_grad) {
    const T norm_s = T(1) / sum_s, norm_t = T(1) / sum_t;
    row.each(change, [&](int64_t c, T s, T t) {
      const T p_s = exp_nonpositive((s - max_s) * scale) * norm_s, p_t = exp_nonpositive((t - max_t) * scale) * norm_t;
      gradient(c, s, p_s - p_t);
    });
  }
}

// Runs body(k, match) by one warp per row; rows whose match is out of range, or that have no class, get 0.
template <typename S, typename Body>
__device__ __forceinline__ void each_row(const LogitsLoss<S>& a, const Body& body) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = int64_t(gridDim.x) * kWarps;
  for (int64_t k = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; k < a.count; k += warps) {
    const int64_t match = a.matched[k];
    if (match >= 0 && match < a.teachers && a.classes > 0) {
      body(k, match);
    } else {
      if (lane == 0) a.rows[k] = Accumulate<S>(0);
      for (int64_t c = lane; a.grad && c < a.columns; c += kWarp) a.grad[k * a.columns + c] = static_cast<S>(0.0f);
    }
  }
}

template <typename S, int kHeld>
__device__ __forceinline__ LogitsRow<S, kHeld> logits_row(const LogitsLoss<S>& a, int64_t k, int64_t match) {
  LogitsRow<S, kHeld> row;
  row.student = a.student + k * a.student_row + first_class_column(a.background) * a.student_column;
  row.teacher = a.teacher + match * a.teacher_row;
  row.student_column = a.student_column;
  row.teacher_column = a.teacher_column;
  row.classes = a.classes;
  return row;
}

// A warp whose rows fit keeps them in registers.
#define CLS2DET_LAUNCH_ROWS(kernel, S, args, stream)                          \
  do {                                                                        \
    const unsigned grid = grid_of(ceil_div((args).count, kWarps));            \
    if (grid == 0) break;                                                     \
    if ((args).classes <= kWarp) {                                            \
      CLS2DET_LAUNCH((kernel<S, 1>), grid, stream, args);                     \
    } else if ((args).classes <= 4 * kWarp) {                                 \
      CLS2DET_LAUNCH((kernel<S, 4>), grid, stream, args);                     \
    } else {                                                                  \
      CLS2DET_LAUNCH((kernel<S, 0>), grid, stream, args);                     \
    }                                                                         \
  } while (0)

}  // namespace cls2det
