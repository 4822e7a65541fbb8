// Where the samples of a box fall on one axis, which pixels they read, and how that changes with the box's edges.
//
// A box (lo, hi) on an axis of `size` pixels, n samples: sample i sits at
//     u_i = lo (1 - a) + hi a - 1/2,   a = (i + 1/2) / n,   pixel centres at integers,
// and reads pixels floor(u) and floor(u) + 1 with the weights 1 - f and f, f = u - floor(u). So
//     d value / d lo = (I[floor + 1] - I[floor]) (1 - a),   d value / d hi = (I[floor + 1] - I[floor]) a.
// Bilinear sampling of an axis-aligned box is the product of two such axes.
#pragma once

#include <cstdint>

#include "math/host_device.h"

namespace cls2det {

// The two pixels of one sample. Pixels are always inside [0, size), so they may be read whatever the box holds;
// outside the axis the weights are 0 ("zeros" padding).
template <typename T>
struct Tap {
  int pixel0, pixel1;
  T weight0, weight1;  // d sample / d pixel
  T slope0, slope1;    // d weight / d u
  T a;                 // d u / d hi; d u / d lo is 1 - a
};

template <typename T>
CLS2DET_HD Tap<T> sample_tap(T lo, T hi, int i, int n, int size, bool border) {
  Tap<T> tap;
  tap.a = (T(i) + T(0.5)) / T(n);
  T u = lo * (T(1) - tap.a) + hi * tap.a - T(0.5);  // this form cannot overflow
  bool moves = true;
  if (border) {  // as in torch, a sample on or beyond the outermost pixel centre moves to that centre
    moves = u > T(0) && u < T(size - 1);
    u = u > T(0) ? (u < T(size - 1) ? u : T(size - 1)) : T(0);
  } else {  // all positions beyond these read nothing: keeps the conversion to int defined
    u = u > T(-2) ? (u < T(size + 1) ? u : T(size + 1)) : T(-2);
  }
  int first = int(u);
  first -= T(first) > u;  // floor
  const T f = u - T(first);
  const bool in0 = first >= 0 && first < size;
  const bool in1 = first >= -1 && first < size - 1;
  tap.pixel0 = in0 ? first : 0;
  tap.pixel1 = in1 ? first + 1 : tap.pixel0;
  tap.weight0 = in0 ? T(1) - f : T(0);
  tap.weight1 = in1 ? f : T(0);
  tap.slope0 = in0 && moves ? T(-1) : T(0);
  tap.slope1 = in1 && moves ? T(1) : T(0);
  return tap;
}

// Adaptive average pooling of n samples into `bins`: bin q covers the samples [bin_begin, bin_end).
CLS2DET_HD int bin_begin(int q, int n, int bins) { return int(int64_t(q) * n / bins); }
CLS2DET_HD int bin_end(int q, int n, int bins) { return int((int64_t(q + 1) * n + bins - 1) / bins); }

// A box on its map: scaled, clipped one-sidedly, and which of its edges still move.
template <typename T>
struct MapBox {
  T x1, y1, x2, y2;
  bool moves_x1, moves_y1, moves_x2, moves_y2;  // false where the edge was clipped: no gradient
  bool finite;
};

template <typename T>
CLS2DET_HD bool is_finite(T x) {
  return x - x == T(0);
}

template <typename T>
CLS2DET_HD MapBox<T> map_box(const T* box, T scale, int height, int width, bool clip) {
  MapBox<T> m{box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale, true, true, true, true, true};
  if (clip) {  // gradient passes at equality: a box that touches the border may move; NaN compares false and stays
    if (m.x1 < T(0)) m.x1 = T(0), m.moves_x1 = false;
    if (m.y1 < T(0)) m.y1 = T(0), m.moves_y1 = false;
    if (m.x2 > T(width)) m.x2 = T(width), m.moves_x2 = false;
    if (m.y2 > T(height)) m.y2 = T(height), m.moves_y2 = false;
  }
  m.finite = is_finite(m.x1) && is_finite(m.y1) && is_finite(m.x2) && is_finite(m.y2);
  return m;
}

}  // namespace cls2det
