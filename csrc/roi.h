// What the operators on boxes share on both back ends: checks, and the way from tensors to the views that kernels get.
#pragma once

#include "checks.h"
#include "views.h"

namespace cls2det {

// The arguments of roi_crop and roi_avg_pool.
struct RoiCall {
  Tensor map, boxes, image_index;
  Pooling pooling;
  double spatial_scale;
};

inline void check_boxes_on_map(const Tensor& map, const Tensor& boxes, const Tensor& image_index) {
  check_map("features", map);
  check_boxes("boxes", boxes, map);
  check_index("image_index", image_index, boxes.size(0));
  check_together(map, {boxes, image_index});
}

inline void check(const RoiCall& call) {
  check_boxes_on_map(call.map, call.boxes, call.image_index);
  check_positive("spatial_scale", call.spatial_scale);
}

// The gradient (N, C, out_h, out_w) of the result of a call.
inline void check_grad(const RoiCall& call, const Tensor& grad) {
  check_size("grad", grad, 0, call.boxes.size(0));
  check_size("grad", grad, 1, call.map.size(1));
  check_together(call.map, {grad});
}

inline Pooling make_pooling(int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w, bool border, bool clip) {
  check_sizes(out_h, out_w, samples_h, samples_w);
  return {int(out_h), int(out_w), int(samples_h), int(samples_w), border, clip};
}

template <typename S>
MapView<S> map_view(const Tensor& map) {
  return {data<const S>(map), map.size(0),   map.size(1),      map.stride(0),   map.stride(1),
          map.stride(2),      map.stride(3), int(map.size(2)), int(map.size(3))};
}

// The contiguous tensors that a BoxList points into.
struct BoxTensors {
  Tensor boxes, image_index;

  BoxTensors(const Tensor& xyxy, const Tensor& index) : boxes(packed(xyxy)), image_index(packed(index)) {}

  template <typename T>
  BoxList<T> list(double scale) const {
    return {data<const T>(boxes), data<const int64_t>(image_index), boxes.size(0), T(scale)};
  }
};

}  // namespace cls2det
