// What the kernels of both back ends get in place of tensors: pointers, sizes and strides. Nothing here knows torch.
//
// S is the storage type of maps and logits (float, double, Half, BFloat16; on the CPU logits, and maps with boxes, are widened
// to the first two), Accumulate<S> that of sums, boxes and losses. Strides count elements.
#pragma once

#include <cstdint>
#include <type_traits>

#include "math/divergence.h"

namespace cls2det {

template <typename S>
using Accumulate = std::conditional_t<std::is_same_v<S, double>, double, float>;

// A map (images, channels, height, width) at any strides.
template <typename S>
struct MapView {
  const S* data;
  int64_t images, channels, stride_n, stride_c, stride_y, stride_x;
  int height, width;
};

// A map whose images are dense: `outer` rows of `inner` neighbouring values each. See dense_map.h.
struct DenseShape {
  int64_t images, outer, inner;
};

// Boxes on the images of one map.
template <typename T>
struct BoxList {
  const T* xyxy;               // (count, 4)
  const int64_t* image_index;  // (count,)
  int64_t count;
  T scale;  // pixels of the map per unit of the boxes
};

// How the operators on boxes sample and pool.
struct Pooling {
  int out_h, out_w, samples_h, samples_w;
  bool border, clip;

  int bins() const { return out_h * out_w; }
};

// What pooling a box gives: the value and its derivatives by the four edges, in the order of a box.
enum PooledPart { kValue, kX1, kY1, kX2, kY2, kPooledParts };

// The arguments of both logits losses: row k of the student against row matched[k] of the teacher.
template <typename S>
struct LogitsView {
  using T = Accumulate<S>;
  const S *student, *teacher;  // (count, columns), (teachers, classes), at the strides below
  int64_t student_row, student_column, teacher_row, teacher_column;
  const int64_t* matched;  // (count,)
  int64_t count, teachers, classes, columns;
  T temperature;
  T loss_scale;  // of a row's divergence: T^2 and the caller's factor
  Background background;
  SigmoidMode mode;  // of kd_sigmoid_loss
  T* rows;           // (count,)
  S* grad;           // (count, columns), d row / d student, or null
};

}  // namespace cls2det
