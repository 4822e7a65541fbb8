// Intersection over union of boxes, for scalars and for SIMD vectors, and which anchors an IoU makes part of an imitation mask.
#pragma once

#include <cmath>

#include "math/host_device.h"

namespace cls2det {

template <typename V>
struct Corners {
  V x1, y1, x2, y2;
};

template <typename V>
CLS2DET_HD V extent(V low, V high) {  // not below 0
  return high > low ? high - low : V();
}

template <typename V>
CLS2DET_HD V area(const Corners<V>& box) {
  return (box.x2 - box.x1) * (box.y2 - box.y1);
}

// 0 where it is not defined: NaN, infinite or inverted boxes, no area.
template <typename V>
CLS2DET_HD V iou(const Corners<V>& a, const Corners<V>& b) {
  const V width = extent<V>(a.x1 > b.x1 ? a.x1 : b.x1, a.x2 < b.x2 ? a.x2 : b.x2);
  const V height = extent<V>(a.y1 > b.y1 ? a.y1 : b.y1, a.y2 < b.y2 ? a.y2 : b.y2);
  const V shared = width * height, ratio = shared / (area(a) + area(b) - shared);
  return ratio > V() ? ratio : V();
}

// The values are those of the schema's `int assignment`.
enum class Assignment : int { level = 0, all = 1, best = 2 };
constexpr int kMostLevels = 16;

// Takes best[levels], the largest IoU of one box with the anchors of each level, and leaves there the thresholds: what an
// anchor's IoU must exceed to be part of the mask.
template <typename T>
CLS2DET_HD void imitation_thresholds(T* best, int levels, T factor, Assignment assignment) {
  int top = 0;
  for (int l = 1; l < levels; ++l) top = best[l] > best[top] ? l : top;
  const T most = levels > 0 ? best[top] : T(0);
  for (int l = 0; l < levels; ++l) {
    const T largest = assignment == Assignment::level ? best[l] : most;
    const bool marks = largest > T(0) && (assignment != Assignment::best || l == top);
    best[l] = marks ? factor * largest : T(INFINITY);
  }
}

}  // namespace cls2det
