// imitation_mask on the CPU: anchors in chunks of one level. A first pass keeps the largest IoU of each box with each chunk, a
// second marks anchors in the chunks where that exceeds the box's threshold.
#include <algorithm>
#include <cstring>

#include "checks.h"
#include "math/iou.h"

namespace cls2det {
namespace {

constexpr int64_t kChunk = 512;  // anchors

struct AnchorChunk {
  int64_t level, begin, end;
};

template <typename T>
struct ImitationArgs {
  Corners<const T*> anchors;   // each (anchors_count,)
  const T* boxes;              // (boxes_count, 4)
  const int64_t* image_index;  // (boxes_count,)
  int64_t anchors_count, boxes_count, images, levels;
  const AnchorChunk* chunks;
  T* largest;     // (chunks, boxes_count)
  T* thresholds;  // (boxes_count, levels)
  bool* mask;     // (images, anchors_count)
};

}  // namespace
}  // namespace cls2det

#define CLS2DET_BODY "cpu/imitation_mask_body.h"
#include "cpu/foreach_target.h"

namespace cls2det {
namespace {

std::vector<AnchorChunk> chunks_of(const Shape& level_sizes) {
  std::vector<AnchorChunk> chunks;
  int64_t begin = 0;
  for (int64_t level = 0; level < int64_t(level_sizes.size()); ++level) {
    const int64_t end = begin + level_sizes[level];
    for (; begin < end; begin += kChunk) chunks.push_back({level, begin, std::min(begin + kChunk, end)});
    begin = end;
  }
  return chunks;
}

template <typename T>
void run(
    const Tensor& anchors, const Tensor& boxes, const Tensor& image_index, const Shape& level_sizes, double factor,
    int64_t assignment, const Tensor& mask) {
  const Tensor planes = packed(torch::stable::transpose(anchors, 0, 1));
  const T* plane = static_cast<const T*>(planes.data_ptr());
  const int64_t count = anchors.size(0), boxes_count = boxes.size(0), levels = level_sizes.size();
  const std::vector<AnchorChunk> chunks = chunks_of(level_sizes);
  std::vector<T> largest(chunks.size() * boxes_count), thresholds(boxes_count * levels, T(0));
  const ImitationArgs<T> args{
      {plane, plane + count, plane + 2 * count, plane + 3 * count},
      static_cast<const T*>(boxes.data_ptr()),
      static_cast<const int64_t*>(image_index.data_ptr()),
      count,
      boxes_count,
      mask.size(0),
      levels,
      chunks.data(),
      largest.data(),
      thresholds.data(),
      static_cast<bool*>(mask.data_ptr()),
  };
  const int64_t grain = 1 + 64 / (boxes_count + 1);  // chunks per thread that are worth waking it
  torch::stable::parallel_for(
      0, chunks.size(), grain, [&](int64_t begin, int64_t end) { CLS2DET_CALL(imitation_maxima<T>, args, begin, end); });
  for (size_t c = 0; c < chunks.size(); ++c) {
    for (int64_t g = 0; g < boxes_count; ++g) {
      T& best = thresholds[g * levels + chunks[c].level];
      best = std::max(best, largest[c * boxes_count + g]);
    }
  }
  for (int64_t g = 0; g < boxes_count; ++g)
    imitation_thresholds(&thresholds[g * levels], int(levels), T(factor), int(assignment));
  torch::stable::parallel_for(
      0, chunks.size(), grain, [&](int64_t begin, int64_t end) { CLS2DET_CALL(imitation_marks<T>, args, begin, end); });
}

Tensor imitation_mask(
    Tensor anchors, Tensor boxes, Tensor image_index, int64_t images, Shape level_sizes, double factor, int64_t assignment) {
  check_imitation(anchors, boxes, image_index, images, level_sizes, factor, assignment);
  Tensor mask = make(anchors, {images, anchors.size(0)}, ScalarType::Bool);
  (anchors.scalar_type() == ScalarType::Double ? run<double> : run<float>)(anchors, packed(boxes), packed(image_index),
                                                                           level_sizes, factor, assignment, mask);
  return mask;
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(cls2det, CPU, m) { m.impl("imitation_mask", TORCH_BOX(&cls2det::imitation_mask)); }
