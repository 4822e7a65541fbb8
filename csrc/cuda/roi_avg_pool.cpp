// The host code of roi_avg_pool on CUDA.
#include "roi_avg_pool.h"

#include "cuda/axis_tensors.h"
#include "cuda/roi_avg_pool_kernel.h"
#include "cuda/roi_map_gradient_kernel.h"
#include "cuda/roi_pool_kernel.h"

namespace cls2det {
namespace {

Tensor pool(const RoiCall& call) {
  const CurrentDevice device(call.map);
  const ScalarType dtype = call.map.scalar_type();
  const BoxTensors boxes(call.boxes, call.image_index);
  Tensor out = make(call.map, {call.boxes.size(0), call.map.size(1), call.pooling.out_h, call.pooling.out_w}, dtype);
  for_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    const BoxList<Accumulate<S>> list = boxes.list<Accumulate<S>>(call.spatial_scale);
    const AxisTensors<Accumulate<S>> axes = box_tables(call.map, list, call.pooling, device.stream());
    pool_boxes(map_view<S>(call.map), list.image_index, axes.tables, data<S>(out), device.stream());
  });
  device.check_launch();
  return out;
}

std::tuple<Tensor, Tensor> pool_backward(const RoiCall& call, const Tensor& grad, bool need_features, bool need_boxes) {
  const CurrentDevice device(call.map);
  const ScalarType dtype = call.map.scalar_type(), acc = accumulate_dtype(dtype);
  const BoxTensors boxes(call.boxes, call.image_index);
  const Tensor upstream = packed(grad, acc);
  Tensor grad_features = make(call.map, need_features ? shape_of(call.map) : Shape{0}, dtype);
  Tensor grad_boxes = make(call.boxes, need_boxes ? Shape{call.boxes.size(0), 4} : Shape{0}, acc);
  if (!need_features && !need_boxes) return {grad_features, grad_boxes};
  for_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    using T = Accumulate<S>;
    const MapView<S> map = map_view<S>(call.map);
    const BoxList<T> list = boxes.list<T>(call.spatial_scale);
    const AxisTensors<T> axes = box_tables(call.map, list, call.pooling, device.stream());
    if (need_boxes) {
      const int64_t tiles = pool_tiling(map, axes.tables).tiles;
      const Tensor partial = make(call.map, {list.count, tiles, kPooledParts}, acc);
      roi_avg_pool_edges(map, list.image_index, axes.tables, data<const T>(upstream), data<T>(partial), device.stream());
      sum_partials<T>(
          data<const T>(partial), tiles, T(1), T(1), list, map.height, map.width, call.pooling.clip, nullptr,
          data<T>(grad_boxes), device.stream());
    }
    if (need_features) {
      roi_map_gradient(
          data<const T>(upstream), map.channels, list, call.pooling, axes.tables, map.images, map.height, map.width,
          map.channels * map.height * map.width, data<S>(grad_features), device.stream());
    }
  });
  device.check_launch();
  return {grad_features, grad_boxes};
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CLS2DET_KEY, m) {
  m.impl("roi_avg_pool", TORCH_BOX(&cls2det::roi_avg_pool<cls2det::pool>));
  m.impl("roi_avg_pool_backward", TORCH_BOX(&cls2det::roi_avg_pool_backward<cls2det::pool_backward>));
}
