// What the two back ends of roi_avg_pool share: its arguments and checks.
#pragma once

#include "roi.h"

namespace cls2det {

// The operators with the arguments of their schemas. They check these and call Run, the implementation of one back end.
template <auto Run>
Tensor roi_avg_pool(
    Tensor features, Tensor boxes, Tensor image_index, int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w,
    double spatial_scale, bool border, bool clip) {
  const Pooling pooling = make_pooling(out_h, out_w, samples_h, samples_w, border, clip);
  const RoiCall call{features, boxes, image_index, pooling, spatial_scale};
  check(call);
  return Run(call);
}

template <auto Run>
std::tuple<Tensor, Tensor> roi_avg_pool_backward(
    Tensor grad, Tensor features, Tensor boxes, Tensor image_index, int64_t samples_h, int64_t samples_w, double spatial_scale,
    bool border, bool clip, bool need_features, bool need_boxes) {
  check_dim("grad", grad, 4);
  const Pooling pooling = make_pooling(grad.size(2), grad.size(3), samples_h, samples_w, border, clip);
  const RoiCall call{features, boxes, image_index, pooling, spatial_scale};
  check(call);
  check_grad(call, grad);
  return Run(call, grad, need_features, need_boxes);
}

}  // namespace cls2det
