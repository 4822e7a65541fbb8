// Boxes on a map, as the kernels see them.
#pragma once

#include "cuda/launch.cuh"
#include "math/sampling.h"

namespace cls2det {

template <typename S>
struct RoiSide {
  const S* data;  // (images, channels, height, width) at the strides n, c, y, x
  int64_t images, channels, stride_n, stride_c, stride_y, stride_x;
  int height, width;
  const Accumulate<S>* boxes;  // (count, 4)
  const int64_t* image_index;  // (count,)
  int64_t count;
  Accumulate<S> scale;
};

struct RoiPooling {
  int out_h, out_w, samples_h, samples_w;
  bool border, clip;
};

// One pixel that a bin reads along one axis: W, dW / d lo, dW / d hi.
template <typename A>
struct AxisEntry {
  int pixel;
  A weight, lo, hi;
};

// The rows of Wx (or Wy) of every box: sparse, `capacity` places per bin. A count of -1 marks a box that is not finite.
template <typename A>
struct AxisTable {
  AxisEntry<A>* entries;  // (boxes, bins, capacity)
  int* counts;            // (boxes, bins)
  int bins, samples, capacity;
};

template <typename A>
struct RoiTables {
  AxisTable<A> x, y;
};

// Places that one bin may need: two pixels per sample.
inline int axis_capacity(int samples, int bins) {
  int most = 1;
  for (int q = 0; q < bins; ++q) {
    const int n = bin_end(q, samples, bins) - bin_begin(q, samples, bins);
    most = n > most ? n : most;
  }
  return 2 * most;
}

}  // namespace cls2det
