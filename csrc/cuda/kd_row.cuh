// One row of logits per group of kLanes neighbouring lanes: each lane holds the classes lane, lane + kLanes, ... of the
// student's row and of the teacher's row that it is matched to.
//
// These kernels are bound by the instructions they issue, not by memory. So few lanes share a row: a step of a sum over lanes
// then serves all rows of a warp, and what is done once per row is done once for all of them.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "math/divergence.h"
#include "views.h"

namespace cls2det {

// exp(x) = ExpUnits<T>::exp(x * ExpUnits<T>::per_one): whoever multiplies x by something anyway gets the change of base for
// free.
template <typename T>
struct ExpUnits {
  static constexpr T per_one = T(1), one = T(1);  // one: what a unit is worth, 1 / per_one
  static __device__ __forceinline__ T exp(T x) { return exp_nonpositive(x); }
};
template <>
struct ExpUnits<float> {
  static constexpr float per_one = 1.44269504f, one = 0.693147181f;
  static __device__ __forceinline__ float exp(float x) { return exp2_fast(x); }
};

// kHeld > 0: both rows are kept in registers, kHeld values per lane, and -infinity, which adds nothing to any sum, where the
// row has ended. kPlain: it fills them, and its logits are neighbours. kHeld = 0: any length, read again in each pass.
template <typename S, int kLanes, int kHeld, bool kPlain>
struct LogitsRow {
  using T = Accumulate<S>;
  static constexpr int kValues = kHeld > 0 ? kHeld : 1;
  const S *student, *teacher;  // class 0
  int64_t student_column, teacher_column, classes;
  T held_s[kValues], held_t[kValues];
  S raw_s[kValues], raw_t[kValues];

  // Sends for the rows; they are not waited for.
  __device__ __forceinline__ void fetch_student() {
    if constexpr (kHeld > 0) fetch(student, student_column, true, raw_s);
  }
  __device__ __forceinline__ void fetch_teacher(bool matched) {
    if constexpr (kHeld > 0) fetch(teacher, teacher_column, matched, raw_t);
  }

  // change(z): what stands for each logit from here on
  template <typename Change>
  __device__ __forceinline__ void load(const Change& change) {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const bool inside = has(int(threadIdx.x) % kLanes + i * kLanes);
        held_s[i] = inside ? change(static_cast<T>(raw_s[i])) : T(-INFINITY);
        held_t[i] = inside ? change(static_cast<T>(raw_t[i])) : T(-INFINITY);
      }
    }
  }

  // visit(i, class, student, teacher) for the classes of this lane, i counting from 0; held, also beyond the row's end.
  template <typename Change, typename Visit>
  __device__ __forceinline__ void each(const Change& change, const Visit& visit) const {
    const int lane = threadIdx.x % kLanes;
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) visit(i, lane + i * kLanes, held_s[i], held_t[i]);
    } else {
      for (int64_t c = lane; c < classes; c += kLanes) {
        visit(0, c, change(static_cast<T>(student[c * student_column])), change(static_cast<T>(teacher[c * teacher_column])));
      }
    }
  }

  template <typename Class>  // int where it fits, which is cheaper
  __device__ __forceinline__ bool has(Class c) const {
    return kPlain || c < static_cast<Class>(classes);
  }

 private:
  __device__ __forceinline__ void fetch(const S* row, int64_t column, bool wanted, S* raw) const {
    const int lane = threadIdx.x % kLanes;
    if constexpr (kPlain) {  // the addresses differ by constants
#pragma unroll
      for (int i = 0; i < kHeld; ++i) raw[i] = wanted ? row[lane + i * kLanes] : static_cast<S>(0.0f);
    } else {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        raw[i] = wanted && has(lane + i * kLanes) ? row[(lane + i * kLanes) * column] : static_cast<S>(0.0f);
      }
    }
  }
};

// KL of softmax(teacher * scale) from softmax(student * scale), the student's with one logit more where `background` is not
// null:  KL = sum_c P^t (a^t - a^s) - log sum exp a^t + log sum exp a^s,  a = scale (z - max z).
// gradient(class, z^s, factor (P^s - P^t)) for every class of this lane; all lanes get the KL and P^s of the background.
template <typename S, int kLanes, int kHeld, bool kPlain, typename Change, typename Gradient>
__device__ __forceinline__ void kl_by_lanes(
    const LogitsRow<S, kLanes, kHeld, kPlain>& row, const Change& change, const Accumulate<S>* background, Accumulate<S> scale,
    Accumulate<S> factor, Accumulate<S>* kl, Accumulate<S>* background_share, bool need_grad, const Gradient& gradient) {
  using T = Accumulate<S>;
  using Units = ExpUnits<T>;
  T max_s = T(-INFINITY), max_t = max_s;
  row.each(change, [&](int, auto, T s, T t) {
    max_s = std::fmax(s, max_s);  // passes over NaN
    max_t = std::fmax(t, max_t);
  });
  max_s = lanes_max(max_s, kLanes);
  max_t = lanes_max(max_t, kLanes);
  if (background && *background > max_s) max_s = *background;

  const T units = scale * Units::per_one;
  T sum_s = T(0), sum_t = T(0), cross = T(0);
  T exp_s[row.kValues], exp_t[row.kValues];  // held for the gradient, as the row is
  row.each(change, [&](int i, auto, T s, T t) {
    const T a_s = (s - max_s) * units, a_t = (t - max_t) * units;
    exp_s[i] = Units::exp(a_s);
    exp_t[i] = Units::exp(a_t);
    sum_s += exp_s[i];
    sum_t += exp_t[i];
    if (exp_t[i] != T(0)) cross += exp_t[i] * (a_t - a_s);  // times() in two instructions
  });
  const T e_background = background ? Units::exp((*background - max_s) * units) : T(0);
  sum_s = lanes_sum(sum_s, kLanes) + e_background;
  sum_t = lanes_sum(sum_t, kLanes);
  cross = lanes_sum(cross, kLanes) * Units::one;
  const T norm_s = T(1) / sum_s, norm_t = T(1) / sum_t;
  *kl = cross * norm_t + std::log(sum_s * norm_t);
  *background_share = e_background * norm_s;

  if (need_grad) {
    const T factor_s = factor * norm_s, factor_t = factor * norm_t;
    row.each(change, [&](int i, auto c, T s, T t) {
      const T e_s = kHeld > 0 ? exp_s[i] : Units::exp((s - max_s) * units);
      const T e_t = kHeld > 0 ? exp_t[i] : Units::exp((t - max_t) * units);
      if (row.has(c)) gradient(c, s, e_s * factor_s - e_t * factor_t);
    });
  }
}

// Runs body(row, k, matched) by kLanes lanes per row, all lanes of a warp at once. Where not `matched`, nothing that the body
// finds may be written: its match is out of range, it has no class or is no row at all. Such rows get 0.
template <int kLanes, int kHeld, bool kPlain, typename S, typename Body>
__device__ __forceinline__ void each_row(const LogitsView<S>& a, const Body& body) {
  constexpr int kRows = kWarp / kLanes;  // of a warp
  const int lane = threadIdx.x % kLanes, group = threadIdx.x % kWarp / kLanes;
  const int64_t step = int64_t(gridDim.x) * kWarps * kRows;
  for (int64_t first = (int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp) * kRows; first < a.count; first += step) {
    const bool inside = first + group < a.count;
    const int64_t k = inside ? first + group : first;
    const int64_t match = a.matched[k];
    LogitsRow<S, kLanes, kHeld, kPlain> row;
    row.student = a.student + k * a.student_row + first_class_column(a.background) * a.student_column;
    row.student_column = a.student_column;
    row.teacher_column = a.teacher_column;
    row.classes = a.classes;
    row.fetch_student();  // before the match is known
    const bool matched = inside && match >= 0 && match < a.teachers && a.classes > 0;
    row.teacher = a.teacher + (matched ? match : 0) * a.teacher_row;
    row.fetch_teacher(matched);
    if (kHeld == 0 && !matched) row.classes = 0;  // not to be read
    body(row, k, matched);
    if (inside && !matched) {
      if (lane == 0) a.rows[k] = Accumulate<S>(0);
      for (int64_t c = lane; a.grad && c < a.columns; c += kLanes) a.grad[k * a.columns + c] = static_cast<S>(0.0f);
    }
  }
}

// kernel<S, kLanes, kHeld, kPlain>: COCO's 80 classes fill 8 x 10.
#define CLS2DET_LAUNCH_ROWS(kernel, S, args, stream)                                                         \
  do {                                                                                                       \
    if ((args).count == 0) break;                                                                            \
    if ((args).classes == 8 * 10 && (args).student_column == 1 && (args).teacher_column == 1) {              \
      CLS2DET_LAUNCH((kernel<S, 8, 10, true>), grid_of(ceil_div((args).count, kBlock / 8)), stream, args);   \
    } else if ((args).classes <= 8 * 4) {                                                                    \
      CLS2DET_LAUNCH((kernel<S, 8, 4, false>), grid_of(ceil_div((args).count, kBlock / 8)), stream, args);   \
    } else if ((args).classes <= 16 * 8) {                                                                   \
      CLS2DET_LAUNCH((kernel<S, 16, 8, false>), grid_of(ceil_div((args).count, kBlock / 16)), stream, args); \
    } else {                                                                                                 \
      CLS2DET_LAUNCH((kernel<S, kWarp, 0, false>), grid_of(ceil_div((args).count, kWarps)), stream, args);   \
    }                                                                                                        \
  } while (0)

}  // namespace cls2det
