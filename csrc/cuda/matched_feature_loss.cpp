// The host code of matched_feature_loss on CUDA.
#include "matched_feature_loss.h"

#include "cuda/axis_tensors.h"
#include "cuda/matched_feature_loss_kernel.h"
#include "cuda/roi_pool_kernel.h"

namespace cls2det {
namespace {

template <typename S>
std::tuple<Tensor, Tensor> forward(const MatchedLossCall& call) {
  using T = Accumulate<S>;
  const Tensor& features = call.features;
  const CurrentDevice device(features);
  const ScalarType acc = accumulate_dtype(features.scalar_type());
  const int64_t count = call.count(), channels = call.channels(), bins = call.out_h * call.out_w;
  const Tensor matched = packed(call.matched_idxs);
  Tensor rows = make(features, {count}, acc);
  Tensor grad = make(features, call.need_grad ? Shape{count, channels, call.out_h, call.out_w} : Shape{0}, acc);
  const AxisTensors<T> axes = window_tables<T>(features, call.out_h, call.out_w, device.stream());
  AxisTables<T> target_tables = axes.tables;
  target_tables.count = call.targets();
  const Tensor target = make(features, {call.targets(), channels, bins}, acc);
  pool_boxes(map_view<S>(call.target_features), nullptr, target_tables, data<T>(target), device.stream());
  FeatureLoss<S> args{};
  args.map = map_view<S>(features);
  args.tables = axes.tables;
  args.target = data<const T>(target);
  args.targets = call.targets();
  args.matched = data<const int64_t>(matched);
  args.loss = call.loss;
  args.beta = T(call.beta);
  args.share = T(mean_share(channels, bins));
  const int64_t tiles = pool_tiling(args.map, args.tables).tiles;
  const Tensor partial = make(features, {count, tiles, kPooledParts}, acc);
  args.partial = data<T>(partial);
  args.pooled_grad = call.need_grad ? data<T>(grad) : nullptr;
  matched_feature_loss_rows(args, device.stream());
  const BoxList<T> no_boxes{nullptr, nullptr, count, T(1)};
  sum_partials<T>(
      data<const T>(partial), tiles, args.share, T(call.factor), no_boxes, args.map.height, args.map.width, false,
      data<T>(rows), nullptr, device.stream());
  device.check_launch();
  return {rows, grad};
}

std::tuple<Tensor, Tensor> loss(const MatchedLossCall& call) {
  return for_storage(call.features.scalar_type(), [&](auto storage) { return forward<decltype(storage)>(call); });
}

Tensor loss_backward(const Tensor& grad_rows, const Tensor& pooled_grad, const Tensor& features, double factor) {
  const CurrentDevice device(features);
  const ScalarType acc = accumulate_dtype(features.scalar_type());
  const Tensor upstream = to_dtype(grad_rows, acc), pooled = packed(pooled_grad, acc);
  Tensor grad = make(features, shape_of(features), features.scalar_type());
  for_storage(features.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    using T = Accumulate<S>;
    unpool_windows(
        data<const T>(upstream), upstream.stride(0), T(factor), data<const T>(pooled), features.size(0), features.size(1),
        int(features.size(2)), int(features.size(3)), int(pooled.size(2)), int(pooled.size(3)), data<S>(grad), device.stream());
  });
  device.check_launch();
  return grad;
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CLS2DET_KEY, m) {
  m.impl("matched_feature_loss", TORCH_BOX(&cls2det::matched_feature_loss<cls2det::loss>));
  m.impl("matched_feature_loss_backward", TORCH_BOX(&cls2det::matched_feature_loss_backward<cls2det::loss_backward>));
}
