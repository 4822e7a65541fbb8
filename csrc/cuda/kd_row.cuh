// One row of logits per group of kLanes neighbouring lanes: each lane holds the classes lane, lane + kLanes, ... of the
// student's row and of the teacher's row that it is matched to.
//
// These kernels are limited by the instructions they issue, not by memory, so only a few lanes share a row: one step of a sum
// over lanes then serves every row of the warp, and so does work that is done once per row.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "math/divergence.h"
#include "views.h"

namespace cls2det {

// The exponential in its cheapest base: exp(x) = ExpUnits<T>::exp(x * ExpUnits<T>::from_natural). A caller that scales x
// anyway puts from_natural into its factor, so that the change of base costs nothing. to_natural is 1 / from_natural.
template <typename T>
struct ExpUnits {
  static constexpr T from_natural = T(1), to_natural = T(1);
  static __device__ __forceinline__ T exp(T x) { return exp_nonpositive(x); }
};
template <>
struct ExpUnits<float> {
  static constexpr float from_natural = 1.44269504f, to_natural = 0.693147181f;
  static __device__ __forceinline__ float exp(float x) { return exp2_fast(x); }
};

// Where kRegisters > 0, both rows stay in registers, kRegisters values per lane; values past the end of a row are -infinity,
// which adds nothing to any sum. kPlain says that rows fill the registers and that their logits are neighbours in memory.
// Where kRegisters = 0, rows have any length, and each pass reads them again.
template <typename S, int kLanes, int kRegisters, bool kPlain>
struct LogitsRow {
  using T = Accumulate<S>;
  static constexpr int kValues = kRegisters > 0 ? kRegisters : 1;
  const S *student, *teacher;  // class 0
  int64_t student_column, teacher_column, classes;
  T values_s[kValues], values_t[kValues];
  S raw_s[kValues], raw_t[kValues];

  // Start to load the rows into registers; nothing waits for them yet.
  __device__ __forceinline__ void fetch_student() {
    if constexpr (kRegisters > 0) fetch(student, student_column, true, raw_s);
  }
  __device__ __forceinline__ void fetch_teacher(bool matched) {
    if constexpr (kRegisters > 0) fetch(teacher, teacher_column, matched, raw_t);
  }

  // Replaces each logit z by change(z).
  template <typename Change>
  __device__ __forceinline__ void load(const Change& change) {
    if constexpr (kRegisters > 0) {
#pragma unroll
      for (int i = 0; i < kRegisters; ++i) {
        const bool inside = has(int(threadIdx.x) % kLanes + i * kLanes);
        values_s[i] = inside ? change(static_cast<T>(raw_s[i])) : T(-INFINITY);
        values_t[i] = inside ? change(static_cast<T>(raw_t[i])) : T(-INFINITY);
      }
    }
  }

  // Calls visit(i, class, student, teacher) for the classes of this lane, i = 0, 1, ...; from registers, also past the end of
  // the row.
  template <typename Change, typename Visit>
  __device__ __forceinline__ void for_classes(const Change& change, const Visit& visit) const {
    const int lane = threadIdx.x % kLanes;
    if constexpr (kRegisters > 0) {
#pragma unroll
      for (int i = 0; i < kRegisters; ++i) visit(i, lane + i * kLanes, values_s[i], values_t[i]);
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
  __device__ __forceinline__ void fetch(const S* row, int64_t column, bool exists, S* raw) const {
    const int lane = threadIdx.x % kLanes;
    if constexpr (kPlain) {  // the addresses differ by constants
#pragma unroll
      for (int i = 0; i < kRegisters; ++i) raw[i] = exists ? row[lane + i * kLanes] : static_cast<S>(0.0f);
    } else {
#pragma unroll
      for (int i = 0; i < kRegisters; ++i) {
        raw[i] = exists && has(lane + i * kLanes) ? row[(lane + i * kLanes) * column] : static_cast<S>(0.0f);
      }
    }
  }
};

// KL of softmax(teacher * scale) from softmax(student * scale). Where `background` is not null, the student has that one logit
// more:
//     KL = sum_c P^t (a^t - a^s) - log sum exp a^t + log sum exp a^s,  a = scale (z - max z)
// Calls gradient(class, z^s, factor (P^s - P^t)) for the classes of this lane. All lanes get the KL and the student's
// probability of the background.
template <typename S, int kLanes, int kRegisters, bool kPlain, typename Change, typename Gradient>
__device__ __forceinline__ void kl_by_lanes(
    const LogitsRow<S, kLanes, kRegisters, kPlain>& row, const Change& change, const Accumulate<S>* background,
    Accumulate<S> scale, Accumulate<S> factor, Accumulate<S>* kl, Accumulate<S>* background_share, bool need_grad,
    const Gradient& gradient) {
  using T = Accumulate<S>;
  using Units = ExpUnits<T>;
  T max_s = T(-INFINITY), max_t = max_s;
  row.for_classes(change, [&](int, auto, T s, T t) {
    max_s = std::fmax(s, max_s);  // ignores NaN
    max_t = std::fmax(t, max_t);
  });
  max_s = lanes_max(max_s, kLanes);
  max_t = lanes_max(max_t, kLanes);
  if (background && *background > max_s) max_s = *background;

  const T units = scale * Units::from_natural;
  T sum_s = T(0), sum_t = T(0), cross = T(0);
  T exp_s[row.kValues], exp_t[row.kValues];  // kept for the gradient
  row.for_classes(change, [&](int i, auto, T s, T t) {
    const T a_s = (s - max_s) * units, a_t = (t - max_t) * units;
    exp_s[i] = Units::exp(a_s);
    exp_t[i] = Units::exp(a_t);
    sum_s += exp_s[i];
    sum_t += exp_t[i];
    if (exp_t[i] != T(0)) cross += exp_t[i] * (a_t - a_s);  // times() of math/divergence.h in two instructions
  });
  const T e_background = background ? Units::exp((*background - max_s) * units) : T(0);
  sum_s = lanes_sum(sum_s, kLanes) + e_background;
  sum_t = lanes_sum(sum_t, kLanes);
  cross = lanes_sum(cross, kLanes) * Units::to_natural;
  const T norm_s = T(1) / sum_s, norm_t = T(1) / sum_t;
  *kl = cross * norm_t + std::log(sum_s * norm_t);
  *background_share = e_background * norm_s;

  if (need_grad) {
    const T factor_s = factor * norm_s, factor_t = factor * norm_t;
    row.for_classes(change, [&](int i, auto c, T s, T t) {
      const T e_s = kRegisters > 0 ? exp_s[i] : Units::exp((s - max_s) * units);
      const T e_t = kRegisters > 0 ? exp_t[i] : Units::exp((t - max_t) * units);
      if (row.has(c)) gradient(c, s, e_s * factor_s - e_t * factor_t);
    });
  }
}

// Calls body(row, k, matched) with kLanes lanes per row, all lanes of a warp together. Where `matched` is false the body must
// write nothing: the match is out of range, there are no classes, or k is past the last row. Rows without a match get 0.
template <int kLanes, int kRegisters, bool kPlain, typename S, typename Body>
__device__ __forceinline__ void for_rows(const LogitsView<S>& a, const Body& body) {
  constexpr int kRows = kWarp / kLanes;  // of a warp
  const int lane = threadIdx.x % kLanes, group = threadIdx.x % kWarp / kLanes;
  const int64_t step = int64_t(gridDim.x) * kWarps * kRows;
  for (int64_t first = (int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp) * kRows; first < a.count; first += step) {
    const bool inside = first + group < a.count;
    const int64_t k = inside ? first + group : first;
    const int64_t match = a.matched[k];
    LogitsRow<S, kLanes, kRegisters, kPlain> row;
    row.student = a.student + k * a.student_row + first_class_column(a.background) * a.student_column;
    row.student_column = a.student_column;
    row.teacher_column = a.teacher_column;
    row.classes = a.classes;
    row.fetch_student();  // before the match is known
    const bool matched = inside && match >= 0 && match < a.teachers && a.classes > 0;
    row.teacher = a.teacher + (matched ? match : 0) * a.teacher_row;
    row.fetch_teacher(matched);
    if (kRegisters == 0 && !matched) row.classes = 0;  // not to be read
    body(row, k, matched);
    if (inside && !matched) {
      if (lane == 0) a.rows[k] = Accumulate<S>(0);
      for (int64_t c = lane; a.grad && c < a.columns; c += kLanes) a.grad[k * a.columns + c] = static_cast<S>(0.0f);
    }
  }
}

// Launches kernel<S, kLanes, kRegisters, kPlain> with the template arguments for this number of classes: COCO's 80 fill 8 x
// 10.
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
