// roi_feature_loss on the CPU. Forward: one task per ground truth and channel block pools the ground truth, then every box
// matched to it, and leaves loss and box gradient; nothing pooled is stored. Backward by features: recomputed per image.
#include "cpu/roi_pool.h"

namespace cls2det {
namespace {

template <typename T>
struct RoiLossArgs {
  RoiSide<T> side, target;
  RoiPooling pooling;
  const int64_t* matched;  // (K,)
  int loss;
  T beta;
  const Groups* groups;  // forward: rows by ground truth; backward: rows by image
  bool need_boxes;
  T* partial;          // forward: (K, blocks, 5)
  const T* grad_rows;  // backward: (K,)
  T* grad_features;    // backward: (images, channels, height, width)
};

}  // namespace
}  // namespace cls2det

#define CLS2DET_BODY "cpu/roi_feature_loss_body.h"
#include "cpu/foreach_target.h"

namespace cls2det {
namespace {

struct Call {  // the arguments of both operators, as the schema has them
  Tensor features, boxes, image_index, target_features, target_boxes, target_image_index, matched_idxs;
  RoiPooling pooling;
  double spatial_scale, target_spatial_scale;
  int64_t loss;
  double beta;

  void check() const {
    check_feature_loss(
        features, boxes, image_index, target_features, target_boxes, target_image_index, matched_idxs, spatial_scale,
        target_spatial_scale, loss, beta);
  }
};

// The tensors of a call in accumulate dtype, kept alive, and the arguments that point into them.
template <typename T>
struct Operands {
  RoiTensors predicted, truths;
  Tensor matched;
  RoiLossArgs<T> args{};

  explicit Operands(const Call& call)
      : predicted(call.features, call.boxes, call.image_index),
        truths(call.target_features, call.target_boxes, call.target_image_index),
        matched(packed(call.matched_idxs)) {
    args.side = predicted.side<T>(call.spatial_scale);
    args.target = truths.side<T>(call.target_spatial_scale);
    args.pooling = call.pooling;
    args.matched = static_cast<const int64_t*>(matched.data_ptr());
    args.loss = int(call.loss);
    args.beta = T(call.beta);
  }
};

// The ground truth that row k counts for, or -1: match, image and the match's image must all be in range.
template <typename T>
int64_t counted_match(const RoiLossArgs<T>& args, int64_t k) {
  const int64_t match = args.matched[k];
  const bool counts = match >= 0 && match < args.target.count && args.side.has_image(k) && args.target.has_image(match);
  return counts ? match : -1;
}

template <typename T>
std::tuple<Tensor, Tensor> forward(const Call& call, bool need_boxes) {
  Operands<T> operands(call);
  RoiLossArgs<T>& args = operands.args;
  const Tensor& map = operands.predicted.map;
  const ScalarType acc = map.scalar_type();
  args.need_boxes = need_boxes;
  const int64_t count = args.side.count;
  const Groups groups(count, args.target.count, [&](int64_t k) { return counted_match(args, k); });
  args.groups = &groups;
  const int64_t blocks = CLS2DET_CALL(channel_blocks<T>, args.side.channels);
  std::vector<T> partial(count * blocks * 5);
  args.partial = partial.data();
  torch::stable::parallel_for(0, args.target.count * blocks, 1, [&](int64_t begin, int64_t end) {
    CLS2DET_CALL(roi_feature_loss_tasks<T>, args, begin, end);
  });

  Tensor rows = make(map, {count}, acc);
  Tensor grad_boxes = make(map, need_boxes ? Shape{count, 4} : Shape{0}, acc);
  T* row = static_cast<T*>(rows.data_ptr());
  T* grad = static_cast<T*>(grad_boxes.data_ptr());
  const T share = T(1) / std::max(T(args.side.channels) * T(args.pooling.bins()), T(1));
  for (int64_t k = 0; k < count; ++k) {
    T sums[5] = {};
    for (int64_t block = 0; block < blocks; ++block) {
      for (int e = 0; e < 5; ++e) sums[e] += partial[(k * blocks + block) * 5 + e] * share;
    }
    row[k] = sums[0];
    if (need_boxes && counted_match(args, k) < 0) {
      std::fill(grad + 4 * k, grad + 4 * k + 4, T(0));
    } else if (need_boxes) {
      write_box_gradient(args.side, args.pooling, k, sums + 1, grad + 4 * k);
    }
  }
  return {rows, grad_boxes};
}

template <typename T>
Tensor backward(const Call& call, const Tensor& grad_rows) {
  Operands<T> operands(call);
  RoiLossArgs<T>& args = operands.args;
  const Tensor& map = operands.predicted.map;
  const Tensor upstream = packed(grad_rows, map.scalar_type());
  Tensor grad = make(map, shape_of(map), map.scalar_type());
  args.grad_rows = static_cast<const T*>(upstream.data_ptr());
  args.grad_features = static_cast<T*>(grad.data_ptr());
  const Groups groups(
      args.side.count, args.side.images, [&](int64_t k) { return counted_match(args, k) < 0 ? -1 : args.side.image_index[k]; });
  args.groups = &groups;
  const int64_t blocks = CLS2DET_CALL(channel_blocks<T>, args.side.channels);
  torch::stable::parallel_for(0, args.side.images * blocks, 1, [&](int64_t begin, int64_t end) {
    CLS2DET_CALL(roi_feature_loss_backward_tasks<T>, args, begin, end);
  });
  return to_dtype(grad, call.features.scalar_type());
}

RoiPooling pooling_of(int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w, bool border, bool clip) {
  check_sizes(out_h, out_w, samples_h, samples_w);
  return {int(out_h), int(out_w), int(samples_h), int(samples_w), border, clip};
}

std::tuple<Tensor, Tensor> roi_feature_loss(
    Tensor features, Tensor boxes, Tensor image_index, Tensor target_features, Tensor target_boxes, Tensor target_image_index,
    Tensor matched_idxs, int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w, double spatial_scale,
    double target_spatial_scale, bool border, bool clip, int64_t loss, double beta, bool need_boxes) {
  const Call call{features,      boxes,
                  image_index,   target_features,
                  target_boxes,  target_image_index,
                  matched_idxs,  pooling_of(out_h, out_w, samples_h, samples_w, border, clip),
                  spatial_scale, target_spatial_scale,
                  loss,          beta};
  call.check();
  return features.scalar_type() == ScalarType::Double ? forward<double>(call, need_boxes) : forward<float>(call, need_boxes);
}

Tensor roi_feature_loss_backward(
    Tensor grad_rows, Tensor features, Tensor boxes, Tensor image_index, Tensor target_features, Tensor target_boxes,
    Tensor target_image_index, Tensor matched_idxs, int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w,
    double spatial_scale, double target_spatial_scale, bool border, bool clip, int64_t loss, double beta) {
  const Call call{features,      boxes,
                  image_index,   target_features,
                  target_boxes,  target_image_index,
                  matched_idxs,  pooling_of(out_h, out_w, samples_h, samples_w, border, clip),
                  spatial_scale, target_spatial_scale,
                  loss,          beta};
  call.check();
  check_grad_rows(grad_rows, boxes);
  return features.scalar_type() == ScalarType::Double ? backward<double>(call, grad_rows) : backward<float>(call, grad_rows);
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(cls2det, CPU, m) {
  m.impl("roi_feature_loss", TORCH_BOX(&cls2det::roi_feature_loss));
  m.impl("roi_feature_loss_backward", TORCH_BOX(&cls2det::roi_feature_loss_backward));
}
