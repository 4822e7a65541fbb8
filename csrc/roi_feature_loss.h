// What the two back ends of roi_feature_loss share: its arguments and checks.
#pragma once

#include <optional>

#include "roi.h"

namespace cls2det {

struct RoiLossCall {
  Tensor features, boxes;
  std::optional<Tensor> image_index;  // none: a box lies on the image of its match
  Tensor target_features, target_boxes, target_image_index, matched_idxs;
  Pooling pooling;
  double spatial_scale, target_spatial_scale;
  Distance loss;
  double beta;
  double factor;  // of the rows, not of the gradient that the forward leaves behind: scale_rows gets it, too
};

inline void check(const RoiLossCall& call) {
  check_boxes_on_map(call.features, call.boxes, call.image_index.value_or(call.matched_idxs));
  check_boxes_on_map(call.target_features, call.target_boxes, call.target_image_index);
  check_dtype("target_features", call.target_features, call.features.scalar_type());
  check_size("target_features", call.target_features, 1, call.features.size(1));
  check_index("matched_idxs", call.matched_idxs, call.boxes.size(0));
  check_together(call.features, {call.target_features, call.matched_idxs});
  check_positive("spatial_scale", call.spatial_scale);
  check_positive("target_spatial_scale", call.target_spatial_scale);
  check_positive("beta", call.beta);
}

// The operators with the arguments of their schemas. They check these and call Run, the implementation of one back end.
template <auto Run>
std::tuple<Tensor, Tensor> roi_feature_loss(
    Tensor features, Tensor boxes, std::optional<Tensor> image_index, Tensor target_features, Tensor target_boxes,
    Tensor target_image_index, Tensor matched_idxs, int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w,
    double spatial_scale, double target_spatial_scale, bool border, bool clip, int64_t loss, double beta, bool need_boxes,
    double factor) {
  const Pooling pooling = make_pooling(out_h, out_w, samples_h, samples_w, border, clip);
  const RoiLossCall call{features,           boxes,        image_index, target_features, target_boxes,
                         target_image_index, matched_idxs, pooling,     spatial_scale,   target_spatial_scale,
                         to_distance(loss),  beta,         factor};
  check(call);
  return Run(call, need_boxes);
}

template <auto Run>
Tensor roi_feature_loss_backward(
    Tensor grad_rows, Tensor features, Tensor boxes, std::optional<Tensor> image_index, Tensor target_features,
    Tensor target_boxes, Tensor target_image_index, Tensor matched_idxs, int64_t out_h, int64_t out_w, int64_t samples_h,
    int64_t samples_w, double spatial_scale, double target_spatial_scale, bool border, bool clip, int64_t loss, double beta,
    double factor) {
  const Pooling pooling = make_pooling(out_h, out_w, samples_h, samples_w, border, clip);
  const RoiLossCall call{features,           boxes,        image_index, target_features, target_boxes,
                         target_image_index, matched_idxs, pooling,     spatial_scale,   target_spatial_scale,
                         to_distance(loss),  beta,         factor};
  check(call);
  check_grad_rows(grad_rows, boxes);
  return Run(call, grad_rows);
}

}  // namespace cls2det
