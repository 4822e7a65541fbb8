// What the two back ends of roi_crop share: its arguments and checks. A crop is a pooling of one sample per bin.
#pragma once

#include "roi.h"

namespace cls2det {

// The operators with the arguments of their schemas. They check these and call Run, the implementation of one back end.
template <auto Run>
Tensor roi_crop(Tensor images, Tensor boxes, Tensor image_index, int64_t out_h, int64_t out_w, bool border, bool clip) {
  const RoiCall call{images, boxes, image_index, make_pooling(out_h, out_w, out_h, out_w, border, clip), 1.0};
  check(call);
  return Run(call);
}

template <auto Run>
std::tuple<Tensor, Tensor> roi_crop_backward(
    Tensor grad, Tensor images, Tensor boxes, Tensor image_index, bool border, bool clip, bool need_images, bool need_boxes) {
  check_dim("grad", grad, 4);
  const int64_t out_h = grad.size(2), out_w = grad.size(3);
  const RoiCall call{images, boxes, image_index, make_pooling(out_h, out_w, out_h, out_w, border, clip), 1.0};
  check(call);
  check_grad(call, grad);
  return Run(call, grad, need_images, need_boxes);
}

}  // namespace cls2det
