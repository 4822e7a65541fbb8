// imitation_mask on the CPU: anchors in chunks of one level. A first pass keeps the largest IoU of each box with each chunk, a
// second marks anchors in the chunks where that exceeds the box's threshold.
#include "imitation_mask.h"

#include <algorithm>
#include <cstring>

namespace cls2det {
namespace {

constexpr int64_t kChunk = 512;  // anchors

struct AnchorChunk {
  int64_t level, begin, end;
};

template <typename T>
struct ImitationArgs {
  Corners<const T*> anchors;   // four times (anchors_count,)
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
void run(const ImitationCall& call, const Tensor& mask) {
  const Tensor planes = packed(torch::stable::transpose(call.anchors, 0, 1));  // x1, y1, x2, y2
  const Tensor boxes = packed(call.boxes), image_index = packed(call.image_index);
  const T* plane = data<const T>(planes);
  const int64_t count = call.anchors.size(0), boxes_count = boxes.size(0), levels = call.level_sizes.size();
  const std::vector<AnchorChunk> chunks = chunks_of(call.level_sizes);
  std::vector<T> largest(chunks.size() * boxes_count), thresholds(boxes_count * levels, T(0));
  ImitationArgs<T> args{};
  args.anchors = {plane, plane + count, plane + 2 * count, plane + 3 * count};
  args.boxes = data<const T>(boxes);
  args.image_index = data<const int64_t>(image_index);
  args.anchors_count = count;
  args.boxes_count = boxes_count;
  args.images = call.images;
  args.levels = levels;
  args.chunks = chunks.data();
  args.largest = largest.data();
  args.thresholds = thresholds.data();
  args.mask = data<bool>(mask);
  const int64_t grain = 1 + 64 / (boxes_count + 1);  // chunks per thread that are worth waking it
  torch::stable::parallel_for(
      0, chunks.size(), grain, [&](int64_t begin, int64_t end) { CLS2DET_CALL(imitation_maxima<T>, args, begin, end); });
  for (size_t c = 0; c < chunks.size(); ++c) {
    for (int64_t g = 0; g < boxes_count; ++g) {
      T& best = thresholds[g * levels + chunks[c].level];
      best = std::max(best, largest[c * boxes_count + g]);
    }
  }
  for (int64_t g = 0; g < boxes_count; ++g) {
    imitation_thresholds(&thresholds[g * levels], int(levels), T(call.factor), call.assignment);
  }
  torch::stable::parallel_for(
      0, chunks.size(), grain, [&](int64_t begin, int64_t end) { CLS2DET_CALL(imitation_marks<T>, args, begin, end); });
}

void mark(const ImitationCall& call, const Tensor& mask) {
  (call.anchors.scalar_type() == ScalarType::Double ? run<double> : run<float>)(call, mask);
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_FRAGMENT(CLS2DET_NAMESPACE, m) {
  m.def(
      "imitation_mask(Tensor anchors, Tensor boxes, Tensor image_index, int images, int[] level_sizes, float factor, "
      "int assignment) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CPU, m) {
  m.impl("imitation_mask", TORCH_BOX(&cls2det::imitation_mask<cls2det::mark>));
}
