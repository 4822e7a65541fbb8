// The host code of roi_feature_loss on CUDA.
#include "roi_feature_loss.h"

#include "cuda/axis_tensors.h"
#include "cuda/roi_feature_loss_kernel.h"
#include "cuda/roi_map_gradient_kernel.h"
#include "cuda/roi_pool_kernel.h"

#ifndef CLS2DET_SCRATCH_VALUES  // the tests make it small
#define CLS2DET_SCRATCH_VALUES (int64_t(1) << 24)
#endif

namespace cls2det {
namespace {

// What both directions need on the device: the tables of both sides, and the loss arguments without outputs.
template <typename S>
struct RoiLossSides {
  using T = Accumulate<S>;
  BoxTensors box_tensors, target_box_tensors;
  Tensor matched;
  BoxList<T> boxes, target_boxes;
  AxisTensors<T> axes, target_axes;

  RoiLossSides(const RoiLossCall& call, cudaStream_t stream)
      : box_tensors(
            call.boxes, call.image_index ? *call.image_index : make(call.boxes, {call.boxes.size(0)}, ScalarType::Long)),
        target_box_tensors(call.target_boxes, call.target_image_index),
        matched(packed(call.matched_idxs)),
        boxes(box_tensors.list<T>(call.spatial_scale)),
        target_boxes(target_box_tensors.list<T>(call.target_spatial_scale)),
        axes(call.features, boxes.count, false, call.pooling),
        target_axes(call.target_features, target_boxes.count, false, call.pooling) {
    ImagesOfMatches of_matches{
        data<const int64_t>(matched), target_boxes.image_index, target_boxes.count,
        call.image_index ? nullptr : data<int64_t>(box_tensors.image_index)};
    build_axis_tables(
        axes.task(call.features, boxes, of_matches), target_axes.task(call.target_features, target_boxes), call.pooling,
        stream);
  }

  // The channels [c0, c0 + channels) of the comparison; pools the targets' into `target` (G, channels, bins).
  FeatureLoss<S> compare(
      const RoiLossCall& call, int64_t c0, int64_t channels, const Tensor& target, cudaStream_t stream) const {
    MapView<S> map = map_view<S>(call.features), target_map = map_view<S>(call.target_features);
    map.data += c0 * map.stride_c;
    target_map.data += c0 * target_map.stride_c;
    map.channels = target_map.channels = channels;
    pool_boxes(target_map, target_boxes.image_index, target_axes.tables, data<T>(target), stream);
    FeatureLoss<S> args{};
    args.map = map;
    args.image_index = boxes.image_index;
    args.tables = axes.tables;
    args.target = data<const T>(target);
    args.target_counts = target_axes.tables.counts;
    args.target_counts_stride = target_axes.tables.counts_per_box();
    args.targets = target_boxes.count;
    args.matched = data<const int64_t>(matched);
    args.loss = call.loss;
    args.beta = T(call.beta);
    args.share = T(mean_share(call.features.size(1), call.pooling.bins()));
    return args;
  }
};

template <typename S>
std::tuple<Tensor, Tensor> forward(const RoiLossCall& call, bool need_boxes) {
  using T = Accumulate<S>;
  const CurrentDevice device(call.features);
  const ScalarType acc = accumulate_dtype(call.features.scalar_type());
  const RoiLossSides<S> sides(call, device.stream());
  const int64_t count = call.boxes.size(0), channels = call.features.size(1);
  Tensor rows = make(call.features, {count}, acc);
  Tensor grad_boxes = make(call.features, need_boxes ? Shape{count, 4} : Shape{0}, acc);
  const Tensor target = make(call.features, {call.target_boxes.size(0), channels, call.pooling.bins()}, acc);
  FeatureLoss<S> args = sides.compare(call, 0, channels, target, device.stream());
  const int64_t tiles = pool_tiling(args.map, args.tables).tiles;
  const Tensor partial = make(call.features, {count, tiles, kPooledParts}, acc);
  args.partial = data<T>(partial);
  args.edges = need_boxes;
  roi_feature_loss_rows(args, device.stream());
  sum_partials(
      data<const T>(partial), tiles, args.share, T(call.factor), sides.boxes, args.map.height, args.map.width,
      call.pooling.clip, data<T>(rows), need_boxes ? data<T>(grad_boxes) : nullptr, device.stream());
  device.check_launch();
  return {rows, grad_boxes};
}

template <typename S>
Tensor backward(const RoiLossCall& call, const Tensor& grad_rows) {
  using T = Accumulate<S>;
  const CurrentDevice device(call.features);
  const ScalarType acc = accumulate_dtype(call.features.scalar_type());
  const RoiLossSides<S> sides(call, device.stream());
  const Tensor upstream = to_dtype(grad_rows, acc);
  const Tensor grad = make(call.features, shape_of(call.features), call.features.scalar_type());
  const int64_t count = call.boxes.size(0), channels = call.features.size(1), bins = call.pooling.bins();
  const int64_t area = call.features.size(2) * call.features.size(3);
  // the gradient of the pooled values exists for a few channels at a time: a bound on memory, not below 8 channels
  const int64_t fit = CLS2DET_SCRATCH_VALUES / (count * bins + 1) / 8 * 8, most = fit > 8 ? fit : 8;
  const int64_t step = most < channels ? most : channels;
  const Tensor target = make(call.features, {call.target_boxes.size(0), step, bins}, acc);
  const Tensor pooled_grad = make(call.features, {count, step, bins}, acc);
  for (int64_t c0 = 0; c0 < channels; c0 += step) {
    const int64_t part = channels - c0 < step ? channels - c0 : step;
    FeatureLoss<S> args = sides.compare(call, c0, part, target, device.stream());
    args.grad_rows = data<const T>(upstream);
    args.grad_stride = upstream.stride(0);
    args.share *= T(call.factor);
    args.pooled_grad = data<T>(pooled_grad);
    roi_feature_loss_rows(args, device.stream());
    roi_map_gradient(
        data<const T>(pooled_grad), part, sides.boxes, call.pooling, args.tables, args.map.images, args.map.height,
        args.map.width, channels * area, data<S>(grad) + c0 * area, device.stream());
  }
  device.check_launch();
  return grad;
}

std::tuple<Tensor, Tensor> loss(const RoiLossCall& call, bool need_boxes) {
  return for_storage(call.features.scalar_type(), [&](auto storage) { return forward<decltype(storage)>(call, need_boxes); });
}

Tensor loss_backward(const RoiLossCall& call, const Tensor& grad_rows) {
  return for_storage(call.features.scalar_type(), [&](auto storage) { return backward<decltype(storage)>(call, grad_rows); });
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CLS2DET_KEY, m) {
  m.impl("roi_feature_loss", TORCH_BOX(&cls2det::roi_feature_loss<cls2det::loss>));
  m.impl("roi_feature_loss_backward", TORCH_BOX(&cls2det::roi_feature_loss_backward<cls2det::loss_backward>));
}
