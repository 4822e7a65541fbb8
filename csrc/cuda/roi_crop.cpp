// The host code of roi_crop on CUDA.
#include "roi_crop.h"

#include "cuda/axis_tensors.h"
#include "cuda/roi_crop_kernel.h"
#include "cuda/roi_map_gradient_kernel.h"
#include "cuda/roi_pool_kernel.h"

namespace cls2det {
namespace {

Tensor crop(const RoiCall& call) {
  const CurrentDevice device(call.map);
  const ScalarType dtype = call.map.scalar_type();
  const BoxTensors boxes(call.boxes, call.image_index);
  Tensor out = make(call.map, {call.boxes.size(0), call.map.size(1), call.pooling.out_h, call.pooling.out_w}, dtype);
  for_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    roi_crop_forward(
        map_view<S>(call.map), boxes.list<Accumulate<S>>(call.spatial_scale), call.pooling, data<S>(out), device.stream());
  });
  device.check_launch();
  return out;
}

std::tuple<Tensor, Tensor> crop_backward(const RoiCall& call, const Tensor& grad, bool need_images, bool need_boxes) {
  const CurrentDevice device(call.map);
  const ScalarType dtype = call.map.scalar_type(), acc = accumulate_dtype(dtype);
  const BoxTensors boxes(call.boxes, call.image_index);
  const Tensor upstream = packed(grad, acc);
  Tensor grad_images = make(call.map, need_images ? shape_of(call.map) : Shape{0}, dtype);
  Tensor grad_boxes = make(call.boxes, need_boxes ? Shape{call.boxes.size(0), 4} : Shape{0}, acc);
  for_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    using T = Accumulate<S>;
    const MapView<S> map = map_view<S>(call.map);
    const BoxList<T> list = boxes.list<T>(call.spatial_scale);
    if (need_boxes) {
      const int64_t tiles = roi_crop_tiles(call.pooling);
      const Tensor partial = make(call.map, {list.count, tiles, kPooledParts}, acc);
      roi_crop_edges(map, list, call.pooling, data<const T>(upstream), data<T>(partial), device.stream());
      sum_partials<T>(
          data<const T>(partial), tiles, T(1), T(1), list, map.height, map.width, call.pooling.clip, nullptr,
          data<T>(grad_boxes), device.stream());
    }
    if (need_images) {
      const AxisTensors<T> axes = box_tables(call.map, list, call.pooling, device.stream());
      roi_map_gradient(
          data<const T>(upstream), map.channels, list, call.pooling, axes.tables, map.images, map.height, map.width,
          map.channels * map.height * map.width, data<S>(grad_images), device.stream());
    }
  });
  device.check_launch();
  return {grad_images, grad_boxes};
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CLS2DET_KEY, m) {
  m.impl("roi_crop", TORCH_BOX(&cls2det::roi_crop<cls2det::crop>));
  m.impl("roi_crop_backward", TORCH_BOX(&cls2det::roi_crop_backward<cls2det::crop_backward>));
}
