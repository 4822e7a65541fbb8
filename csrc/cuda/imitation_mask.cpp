// The host code of imitation_mask on CUDA.
#include "imitation_mask.h"

#include "cuda/imitation_mask_kernel.h"
#include "cuda/tensors.h"

namespace cls2det {
namespace {

template <typename T>
void run(const ImitationCall& call, const Tensor& mask, cudaStream_t stream) {
  const Tensor anchors = packed(call.anchors), boxes = packed(call.boxes), image_index = packed(call.image_index);
  const int levels = int(call.level_sizes.size());
  const Tensor thresholds = make(anchors, {boxes.size(0), levels}, anchors.scalar_type());
  ImitationMask<T> args{};
  args.anchors = data<const T>(anchors);
  args.boxes = data<const T>(boxes);
  args.image_index = data<const int64_t>(image_index);
  args.boxes_count = boxes.size(0);
  args.images = call.images;
  args.levels = levels;
  args.assignment = call.assignment;
  for (int l = 0; l < levels; ++l) args.level_begin[l + 1] = args.level_begin[l] + call.level_sizes[l];
  args.factor = T(call.factor);
  args.thresholds = data<T>(thresholds);
  args.mask = data<bool>(mask);
  imitation_marks(args, stream);
}

void mark(const ImitationCall& call, const Tensor& mask) {
  const CurrentDevice device(call.anchors);
  (call.anchors.scalar_type() == ScalarType::Double ? run<double> : run<float>)(call, mask, device.stream());
  device.check_launch();
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CLS2DET_KEY, m) {
  m.impl("imitation_mask", TORCH_BOX(&cls2det::imitation_mask<cls2det::mark>));
}
