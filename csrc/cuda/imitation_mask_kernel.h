// The kernels of imitation_mask.
#pragma once

#include "cuda/storage.h"
#include "math/iou.h"

namespace cls2det {

template <typename T>
struct ImitationMask {
  const T *anchors, *boxes;    // (anchors, 4), (boxes_count, 4)
  const int64_t* image_index;  // (boxes_count,)
  int64_t boxes_count, images;
  int levels;
  Assignment assignment;
  int64_t level_begin[kMostLevels + 1];  // the first anchor of each level, then the number of anchors
  T factor;
  T* thresholds;  // (boxes_count, levels), scratch
  bool* mask;     // (images, anchors)
};
template <typename T>
void imitation_marks(const ImitationMask<T>& args, cudaStream_t stream);

}  // namespace cls2det
