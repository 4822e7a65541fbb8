// roi_feature_loss on the CPU. Forward: one task per ground truth and channel block pools the ground truth, then every box
// matched to it, and leaves loss and box gradient; nothing pooled is stored. Backward by features: recomputed per image.
#include "roi_feature_loss.h"

#include "cpu/roi_pool.h"

namespace cls2det {
namespace {

template <typename T>
struct RoiLossArgs {
  RoiView<T> predicted, target;
  Pooling pooling;
  const int64_t* matched;  // (K,)
  Distance loss;
  T beta, factor;
  const Groups* groups;  // forward: rows by ground truth; backward: rows by image
  bool need_boxes;
  T* partial;          // forward: (K, blocks, kPooledParts)
  const T* grad_rows;  // backward: (K,)
  T* grad_features;    // backward: (images, channels, height, width)
};

}  // namespace
}  // namespace cls2det

#define CLS2DET_BODY "cpu/roi_feature_loss_body.h"
#include "cpu/foreach_target.h"

namespace cls2det {
namespace {

// The image of each box.
Tensor box_images(const RoiLossCall& call, const Tensor& matched) {
  if (call.image_index) return *call.image_index;
  const Tensor of_targets = packed(call.target_image_index), images = make(matched, {matched.size(0)}, ScalarType::Long);
  for (int64_t k = 0; k < matched.size(0); ++k) {
    const int64_t match = data<const int64_t>(matched)[k];
    const bool inside = match >= 0 && match < of_targets.size(0);
    data<int64_t>(images)[k] = inside ? data<const int64_t>(of_targets)[match] : -1;
  }
  return images;
}

// The tensors of a call in accumulate dtype, and the arguments that point into them.
template <typename T>
struct Operands {
  Tensor matched;
  RoiTensors predicted, truths;
  RoiLossArgs<T> args{};

  explicit Operands(const RoiLossCall& call)
      : matched(packed(call.matched_idxs)),
        predicted(call.features, call.boxes, box_images(call, matched)),
        truths(call.target_features, call.target_boxes, call.target_image_index) {
    args.predicted = predicted.view<T>(call.spatial_scale);
    args.target = truths.view<T>(call.target_spatial_scale);
    args.pooling = call.pooling;
    args.matched = data<const int64_t>(matched);
    args.loss = call.loss;
    args.beta = T(call.beta);
    args.factor = T(call.factor);
  }
};

// The ground truth that row k counts for, or -1: match, image and the match's image must all be in range.
template <typename T>
int64_t valid_match(const RoiLossArgs<T>& args, int64_t k) {
  const int64_t match = args.matched[k];
  const bool counts =
      match >= 0 && match < args.target.boxes.count && args.predicted.has_image(k) && args.target.has_image(match);
  return counts ? match : -1;
}

template <typename T>
std::tuple<Tensor, Tensor> forward(const RoiLossCall& call, bool need_boxes) {
  Operands<T> operands(call);
  RoiLossArgs<T>& args = operands.args;
  const Tensor& map = operands.predicted.map;
  const ScalarType acc = map.scalar_type();
  args.need_boxes = need_boxes;
  const int64_t count = args.predicted.boxes.count;
  const Groups groups(count, args.target.boxes.count, [&](int64_t k) { return valid_match(args, k); });
  args.groups = &groups;
  const int64_t blocks = CLS2DET_CALL(channel_blocks<T>, args.predicted.map.channels);
  std::vector<T> partial(count * blocks * kPooledParts);
  args.partial = partial.data();
  torch::stable::parallel_for(0, args.target.boxes.count * blocks, 1, [&](int64_t begin, int64_t end) {
    CLS2DET_CALL(roi_feature_loss_tasks<T>, args, begin, end);
  });

  Tensor rows = make(map, {count}, acc);
  Tensor grad_boxes = make(map, need_boxes ? Shape{count, 4} : Shape{0}, acc);
  T* row = data<T>(rows);
  T* grad = data<T>(grad_boxes);
  const T share = T(1) / std::max(T(args.predicted.map.channels) * T(args.pooling.bins()), T(1));
  for (int64_t k = 0; k < count; ++k) {
    T sums[kPooledParts] = {};
    for (int64_t block = 0; block < blocks; ++block) {
      for (int e = 0; e < kPooledParts; ++e) sums[e] += partial[(k * blocks + block) * kPooledParts + e] * share;
    }
    row[k] = sums[kValue] * args.factor;
    if (need_boxes && valid_match(args, k) < 0) {
      std::fill(grad + 4 * k, grad + 4 * k + 4, T(0));
    } else if (need_boxes) {
      write_box_gradient(args.predicted, args.pooling, k, sums + kX1, grad + 4 * k);
    }
  }
  return {rows, grad_boxes};
}

template <typename T>
Tensor backward(const RoiLossCall& call, const Tensor& grad_rows) {
  Operands<T> operands(call);
  RoiLossArgs<T>& args = operands.args;
  const Tensor& map = operands.predicted.map;
  const Tensor upstream = packed(grad_rows, map.scalar_type());
  Tensor grad = make(map, shape_of(map), map.scalar_type());
  args.grad_rows = data<const T>(upstream);
  args.grad_features = data<T>(grad);
  const Groups groups(args.predicted.boxes.count, args.predicted.map.images, [&](int64_t k) {
    return valid_match(args, k) < 0 ? -1 : args.predicted.boxes.image_index[k];
  });
  args.groups = &groups;
  const int64_t blocks = CLS2DET_CALL(channel_blocks<T>, args.predicted.map.channels);
  torch::stable::parallel_for(0, args.predicted.map.images * blocks, 1, [&](int64_t begin, int64_t end) {
    CLS2DET_CALL(roi_feature_loss_backward_tasks<T>, args, begin, end);
  });
  return to_dtype(grad, call.features.scalar_type());
}

std::tuple<Tensor, Tensor> loss(const RoiLossCall& call, bool need_boxes) {
  return (call.features.scalar_type() == ScalarType::Double ? forward<double> : forward<float>)(call, need_boxes);
}

Tensor loss_backward(const RoiLossCall& call, const Tensor& grad_rows) {
  return (call.features.scalar_type() == ScalarType::Double ? backward<double> : backward<float>)(call, grad_rows);
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_FRAGMENT(CLS2DET_NAMESPACE, m) {
  m.def(
      "roi_feature_loss(Tensor features, Tensor boxes, Tensor? image_index, Tensor target_features, Tensor target_boxes, "
      "Tensor target_image_index, Tensor matched_idxs, int out_h, int out_w, int samples_h, int samples_w, "
      "float spatial_scale, float target_spatial_scale, bool border, bool clip, int loss, float beta, bool need_boxes, "
      "float factor) -> (Tensor, Tensor)");
  m.def(
      "roi_feature_loss_backward(Tensor grad_rows, Tensor features, Tensor boxes, Tensor? image_index, "
      "Tensor target_features, Tensor target_boxes, Tensor target_image_index, Tensor matched_idxs, int out_h, int out_w, "
      "int samples_h, int samples_w, float spatial_scale, float target_spatial_scale, bool border, bool clip, int loss, "
      "float beta, float factor) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CPU, m) {
  m.impl("roi_feature_loss", TORCH_BOX(&cls2det::roi_feature_loss<cls2det::loss>));
  m.impl("roi_feature_loss_backward", TORCH_BOX(&cls2det::roi_feature_loss_backward<cls2det::loss_backward>));
}
