// What the two back ends of imitation_mask share: its arguments and checks.
#pragma once

#include "checks.h"
#include "math/iou.h"

namespace cls2det {

// Anchors and boxes xyxy in one dtype, float32 or float64. The anchors of a level follow each other.
struct ImitationCall {
  Tensor anchors, boxes, image_index;
  int64_t images;
  Shape level_sizes;
  double factor;
  Assignment assignment;
};

inline void check(const ImitationCall& call) {
  check_boxes("anchors", call.anchors, call.anchors);
  check_boxes("boxes", call.boxes, call.anchors);
  check_index("image_index", call.image_index, call.boxes.size(0));
  check_together(call.anchors, {call.boxes, call.image_index});
  if (call.images < 0) fail("images must not be negative, found ", call.images);
  if (call.level_sizes.empty() || call.level_sizes.size() > size_t(kMostLevels)) {
    fail("level_sizes must be 1 to ", kMostLevels, " numbers");
  }
  int64_t left = call.anchors.size(0);
  for (int64_t size : call.level_sizes) {
    if (size < 0 || size > left) fail("level_sizes must sum up to the number of anchors");
    left -= size;
  }
  if (left != 0) fail("level_sizes must sum up to the number of anchors");
  check_positive("factor", call.factor);
}

// The operator with the arguments of its schema. It checks these and calls Run, the implementation of one back end, which
// writes the mask (images, anchors).
template <auto Run>
Tensor imitation_mask(
    Tensor anchors, Tensor boxes, Tensor image_index, int64_t images, Shape level_sizes, double factor, int64_t assignment) {
  const ImitationCall call{
      anchors, boxes, image_index, images, level_sizes, factor, to_option("assignment", assignment, Assignment::best)};
  check(call);
  const Tensor mask = make(anchors, {images, anchors.size(0)}, ScalarType::Bool);
  Run(call, mask);
  return mask;
}

}  // namespace cls2det
