// From tensors to launchers: checks, scratch memory and the switch over dtypes of the CUDA operators on boxes and on logits;
// those on whole maps are in map_operators.cpp. No other CUDA file knows torch.
#include "cuda/tensors.h"

#ifndef CLS2DET_SCRATCH_VALUES  // the tests make it small
#define CLS2DET_SCRATCH_VALUES (int64_t(1) << 24)
#endif

namespace cls2det {
namespace {

Pooling pooling_of(int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w, bool border, bool clip) {
  check_sizes(out_h, out_w, samples_h, samples_w);
  return {int(out_h), int(out_w), int(samples_h), int(samples_w), border, clip};
}

// Axes and the memory behind them.
template <typename T>
struct AxisTables {
  Axes<T> axes;
  Tensor entries, counts;

  AxisTables(const Tensor& like, int64_t boxes, bool shared, int out_h, int out_w, int samples_h, int samples_w)
      : axes{nullptr, nullptr, boxes, shared, out_h, out_w, slots_per_bin(samples_h, out_h), slots_per_bin(samples_w, out_w)},
        entries(make(like, {(shared ? 1 : boxes) * axes.entries_per_box() * int64_t(sizeof(AxisEntry<T>))}, ScalarType::Byte)),
        counts(make(like, {(shared ? 1 : boxes) * axes.counts_per_box()}, ScalarType::Int)) {
    axes.entries = data<AxisEntry<T>>(entries);
    axes.counts = data<int>(counts);
  }

  // of boxes on a map, not filled
  AxisTables(const Tensor& map, const BoxList<T>& boxes, const Pooling& p)
      : AxisTables(map, boxes.count, false, p.out_h, p.out_w, p.samples_h, p.samples_w) {}

  AxesOf<T> of(const Tensor& map, const BoxList<T>& boxes) const {
    return {boxes, map.size(0), int(map.size(2)), int(map.size(3)), axes};
  }

  static AxisTables filled(const Tensor& map, const BoxList<T>& boxes, const Pooling& p, cudaStream_t stream) {
    AxisTables tables(map, boxes, p);
    build_axes(tables.of(map, boxes), AxesOf<T>{}, p, stream);
    return tables;
  }

  // of adaptive average pooling of whole maps
  static AxisTables of_windows(const Tensor& maps, int64_t out_h, int64_t out_w, cudaStream_t stream) {
    const int height = int(maps.size(2)), width = int(maps.size(3));
    AxisTables tables(maps, maps.size(0), true, int(out_h), int(out_w), height, width);
    build_window_axes(height, width, tables.axes, stream);
    return tables;
  }
};

// ---- roi_crop and roi_avg_pool ----

Tensor roi_crop(Tensor images, Tensor boxes, Tensor image_index, int64_t out_h, int64_t out_w, bool border, bool clip) {
  check_roi(images, boxes, image_index);
  const Pooling pooling = pooling_of(out_h, out_w, out_h, out_w, border, clip);
  const CurrentDevice device(images);
  const Boxes rois(boxes, image_index);
  Tensor out = make(images, {boxes.size(0), images.size(1), out_h, out_w}, images.scalar_type());
  for_storage(images.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    roi_crop_forward(view<S>(images), rois.list<Accumulate<S>>(1.0), pooling, data<S>(out), device.stream());
  });
  device.check_launch();
  return out;
}

Tensor roi_avg_pool(
    Tensor features, Tensor boxes, Tensor image_index, int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w,
    double spatial_scale, bool border, bool clip) {
  check_roi(features, boxes, image_index);
  check_positive("spatial_scale", spatial_scale);
  const Pooling pooling = pooling_of(out_h, out_w, samples_h, samples_w, border, clip);
  const CurrentDevice device(features);
  const Boxes rois(boxes, image_index);
  Tensor out = make(features, {boxes.size(0), features.size(1), out_h, out_w}, features.scalar_type());
  for_storage(features.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    const BoxList<Accumulate<S>> list = rois.list<Accumulate<S>>(spatial_scale);
    const auto tables = AxisTables<Accumulate<S>>::filled(features, list, pooling, device.stream());
    roi_avg_pool_forward(view<S>(features), list.image_index, tables.axes, data<S>(out), device.stream());
  });
  device.check_launch();
  return out;
}

// Both operators: a crop is a pooling of one sample per bin, with box gradients of its own.
std::tuple<Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& map, const Tensor& boxes, const Tensor& image_index, const Pooling& pooling,
    double spatial_scale, bool crop, bool need_map, bool need_boxes) {
  const CurrentDevice device(map);
  const ScalarType dtype = map.scalar_type(), acc = accumulate_dtype(dtype);
  const Boxes rois(boxes, image_index);
  const Tensor upstream = packed(grad, acc);
  Tensor grad_map = make(map, need_map ? shape_of(map) : Shape{0}, dtype);
  Tensor grad_boxes = make(boxes, need_boxes ? Shape{boxes.size(0), 4} : Shape{0}, acc);
  const int height = int(map.size(2)), width = int(map.size(3));
  for_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    using T = Accumulate<S>;
    const BoxList<T> list = rois.list<T>(spatial_scale);
    const MapView<S> features = view<S>(map);
    const auto partials = [&](int64_t tiles) { return make(map, {list.count, tiles, 5}, acc); };
    const auto reduce = [&](const Tensor& partial) {
      sum_partials<T>(
          data<const T>(partial), partial.size(1), T(1), list, height, width, pooling.clip, nullptr, data<T>(grad_boxes),
          device.stream());
    };
    if (need_boxes && crop) {
      const Tensor partial = partials(roi_crop_tiles(pooling));
      roi_crop_edges(features, list, pooling, data<const T>(upstream), data<T>(partial), device.stream());
      reduce(partial);
    }
    if (!need_map && (crop || !need_boxes)) return;
    const auto tables = AxisTables<T>::filled(map, list, pooling, device.stream());
    if (need_boxes && !crop) {
      const Tensor partial = partials(pool_tiling(features, tables.axes).tiles);
      roi_avg_pool_edges(features, list.image_index, tables.axes, data<const T>(upstream), data<T>(partial), device.stream());
      reduce(partial);
    }
    if (need_map) {
      roi_map_gradient(
          data<const T>(upstream), map.size(1), list, pooling, tables.axes, map.size(0), height, width,
          map.size(1) * height * width, data<S>(grad_map), device.stream());
    }
  });
  device.check_launch();
  return {grad_map, grad_boxes};
}

std::tuple<Tensor, Tensor> roi_crop_backward(
    Tensor grad, Tensor images, Tensor boxes, Tensor image_index, bool border, bool clip, bool need_images, bool need_boxes) {
  check_roi(images, boxes, image_index);
  check_roi_grad(grad, images, boxes);
  const Pooling pooling = pooling_of(grad.size(2), grad.size(3), grad.size(2), grad.size(3), border, clip);
  return backward(grad, images, boxes, image_index, pooling, 1.0, true, need_images, need_boxes);
}

std::tuple<Tensor, Tensor> roi_avg_pool_backward(
    Tensor grad, Tensor features, Tensor boxes, Tensor image_index, int64_t samples_h, int64_t samples_w, double spatial_scale,
    bool border, bool clip, bool need_features, bool need_boxes) {
  check_roi(features, boxes, image_index);
  check_roi_grad(grad, features, boxes);
  check_positive("spatial_scale", spatial_scale);
  const Pooling pooling = pooling_of(grad.size(2), grad.size(3), samples_h, samples_w, border, clip);
  return backward(grad, features, boxes, image_index, pooling, spatial_scale, false, need_features, need_boxes);
}

// ---- feature losses ----

double share_of(const Tensor& map, int64_t bins) { return 1.0 / (double(map.size(1) > 0 ? map.size(1) : 1) * double(bins)); }

struct RoiLossCall {  // the arguments of both operators, as the schema has them
  Tensor features, boxes, image_index, target_features, target_boxes, target_image_index, matched_idxs;
  Pooling pooling;
  double spatial_scale, target_spatial_scale;
  int64_t loss;
  double beta;

  void check() const {
    check_feature_loss(
        features, boxes, image_index, target_features, target_boxes, target_image_index, matched_idxs, spatial_scale,
        target_spatial_scale, loss, beta);
  }

  int64_t bins() const { return int64_t(pooling.out_h) * pooling.out_w; }
};

// What both directions need on the device: the tables of both sides, and the loss arguments without outputs.
template <typename S>
struct RoiLossSides {
  using T = Accumulate<S>;
  Boxes rois, target_rois;
  Tensor matched;
  BoxList<T> boxes, target_boxes;
  AxisTables<T> tables, target_tables;

  RoiLossSides(const RoiLossCall& call, cudaStream_t stream)
      : rois(call.boxes, call.image_index),
        target_rois(call.target_boxes, call.target_image_index),
        matched(packed(call.matched_idxs)),
        boxes(rois.list<T>(call.spatial_scale)),
        target_boxes(target_rois.list<T>(call.target_spatial_scale)),
        tables(call.features, boxes, call.pooling),
        target_tables(call.target_features, target_boxes, call.pooling) {
    build_axes(tables.of(call.features, boxes), target_tables.of(call.target_features, target_boxes), call.pooling, stream);
  }

  // The channels [c0, c0 + channels) of the comparison; pools the targets' into `target` (G, channels, bins).
  FeatureLoss<S> compare(
      const RoiLossCall& call, int64_t c0, int64_t channels, const Tensor& target, cudaStream_t stream) const {
    MapView<S> map = view<S>(call.features), target_map = view<S>(call.target_features);
    map.data += c0 * map.stride_c;
    target_map.data += c0 * target_map.stride_c;
    map.channels = target_map.channels = channels;
    roi_avg_pool_forward(target_map, target_boxes.image_index, target_tables.axes, data<T>(target), stream);
    FeatureLoss<S> args{};
    args.map = map;
    args.image_index = boxes.image_index;
    args.axes = tables.axes;
    args.target = data<const T>(target);
    args.target_counts = target_tables.axes.counts;
    args.target_counts_stride = target_tables.axes.counts_per_box();
    args.targets = target_boxes.count;
    args.matched = data<const int64_t>(matched);
    args.loss = int(call.loss);
    args.beta = T(call.beta);
    args.share = T(share_of(call.features, call.bins()));
    return args;
  }
};

template <typename S>
std::tuple<Tensor, Tensor> roi_loss_forward(const RoiLossCall& call, bool need_boxes) {
  using T = Accumulate<S>;
  const CurrentDevice device(call.features);
  const ScalarType acc = accumulate_dtype(call.features.scalar_type());
  const RoiLossSides<S> sides(call, device.stream());
  const int64_t count = call.boxes.size(0), channels = call.features.size(1);
  Tensor rows = make(call.features, {count}, acc);
  Tensor grad_boxes = make(call.features, need_boxes ? Shape{count, 4} : Shape{0}, acc);
  const Tensor target = make(call.features, {call.target_boxes.size(0), channels, call.bins()}, acc);
  FeatureLoss<S> args = sides.compare(call, 0, channels, target, device.stream());
  const int64_t tiles = pool_tiling(args.map, args.axes).tiles;
  const Tensor partial = make(call.features, {count, tiles, 5}, acc);
  args.partial = data<T>(partial);
  args.edges = need_boxes;
  feature_loss(args, device.stream());
  sum_partials(
      data<const T>(partial), tiles, args.share, sides.boxes, args.map.height, args.map.width, call.pooling.clip, data<T>(rows),
      need_boxes ? data<T>(grad_boxes) : nullptr, device.stream());
  device.check_launch();
  return {rows, grad_boxes};
}

template <typename S>
Tensor roi_loss_backward(const RoiLossCall& call, const Tensor& grad_rows) {
  using T = Accumulate<S>;
  const CurrentDevice device(call.features);
  const ScalarType acc = accumulate_dtype(call.features.scalar_type());
  const RoiLossSides<S> sides(call, device.stream());
  const Tensor upstream = to_dtype(grad_rows, acc);
  const Tensor grad = make(call.features, shape_of(call.features), call.features.scalar_type());
  const int64_t count = call.boxes.size(0), channels = call.features.size(1), bins = call.bins();
  const int64_t area = call.features.size(2) * call.features.size(3);
  // the gradient of the pooled values is held for a few channels at a time: a bound on memory, not below 8 channels
  const int64_t fit = CLS2DET_SCRATCH_VALUES / (count * bins + 1) / 8 * 8, most = fit > 8 ? fit : 8;
  const int64_t step = most < channels ? most : channels;
  const Tensor target = make(call.features, {call.target_boxes.size(0), step, bins}, acc);
  const Tensor pooled_grad = make(call.features, {count, step, bins}, acc);
  for (int64_t c0 = 0; c0 < channels; c0 += step) {
    const int64_t part = channels - c0 < step ? channels - c0 : step;
    FeatureLoss<S> args = sides.compare(call, c0, part, target, device.stream());
    args.grad_rows = data<const T>(upstream);
    args.grad_stride = upstream.stride(0);
    args.pooled_grad = data<T>(pooled_grad);
    feature_loss(args, device.stream());
    roi_map_gradient(
        data<const T>(pooled_grad), part, sides.boxes, call.pooling, args.axes, args.map.images, args.map.height,
        args.map.width, channels * area, data<S>(grad) + c0 * area, device.stream());
  }
  device.check_launch();
  return grad;
}

std::tuple<Tensor, Tensor> roi_feature_loss(
    Tensor features, Tensor boxes, Tensor image_index, Tensor target_features, Tensor target_boxes, Tensor target_image_index,
    Tensor matched_idxs, int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w, double spatial_scale,
    double target_spatial_scale, bool border, bool clip, int64_t loss, double beta, bool need_boxes) {
  const RoiLossCall call{features,      boxes,
                         image_index,   target_features,
                         target_boxes,  target_image_index,
                         matched_idxs,  pooling_of(out_h, out_w, samples_h, samples_w, border, clip),
                         spatial_scale, target_spatial_scale,
                         loss,          beta};
  call.check();
  return for_storage(
      features.scalar_type(), [&](auto storage) { return roi_loss_forward<decltype(storage)>(call, need_boxes); });
}

Tensor roi_feature_loss_backward(
    Tensor grad_rows, Tensor features, Tensor boxes, Tensor image_index, Tensor target_features, Tensor target_boxes,
    Tensor target_image_index, Tensor matched_idxs, int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w,
    double spatial_scale, double target_spatial_scale, bool border, bool clip, int64_t loss, double beta) {
  const RoiLossCall call{features,      boxes,
                         image_index,   target_features,
                         target_boxes,  target_image_index,
                         matched_idxs,  pooling_of(out_h, out_w, samples_h, samples_w, border, clip),
                         spatial_scale, target_spatial_scale,
                         loss,          beta};
  call.check();
  check_grad_rows(grad_rows, boxes);
  return for_storage(
      features.scalar_type(), [&](auto storage) { return roi_loss_backward<decltype(storage)>(call, grad_rows); });
}

template <typename S>
std::tuple<Tensor, Tensor> matched_loss_forward(
    const Tensor& features, const Tensor& target_features, const Tensor& matched_idxs, int64_t out_h, int64_t out_w,
    int64_t loss, double beta, bool need_grad) {
  using T = Accumulate<S>;
  const CurrentDevice device(features);
  const ScalarType acc = accumulate_dtype(features.scalar_type());
  const int64_t count = features.size(0), channels = features.size(1), targets = target_features.size(0);
  const Tensor matched = packed(matched_idxs);
  Tensor rows = make(features, {count}, acc);
  Tensor grad = make(features, need_grad ? Shape{count, channels, out_h, out_w} : Shape{0}, acc);
  const auto tables = AxisTables<T>::of_windows(features, out_h, out_w, device.stream());
  Axes<T> target_axes = tables.axes;
  target_axes.count = targets;
  const Tensor target = make(features, {targets, channels, out_h * out_w}, acc);
  roi_avg_pool_forward(view<S>(target_features), nullptr, target_axes, data<T>(target), device.stream());
  FeatureLoss<S> args{};
  args.map = view<S>(features);
  args.axes = tables.axes;
  args.target = data<const T>(target);
  args.targets = targets;
  args.matched = data<const int64_t>(matched);
  args.loss = int(loss);
  args.beta = T(beta);
  args.share = T(share_of(features, out_h * out_w));
  const int64_t tiles = pool_tiling(args.map, args.axes).tiles;
  const Tensor partial = make(features, {count, tiles, 5}, acc);
  args.partial = data<T>(partial);
  args.pooled_grad = need_grad ? data<T>(grad) : nullptr;
  feature_loss(args, device.stream());
  const BoxList<T> no_boxes{nullptr, nullptr, count, T(1)};
  sum_partials<T>(
      data<const T>(partial), tiles, args.share, no_boxes, args.map.height, args.map.width, false, data<T>(rows), nullptr,
      device.stream());
  device.check_launch();
  return {rows, grad};
}

std::tuple<Tensor, Tensor> matched_feature_loss(
    Tensor features, Tensor target_features, Tensor matched_idxs, int64_t out_h, int64_t out_w, int64_t loss, double beta,
    bool need_grad) {
  check_matched_loss(features, target_features, matched_idxs, out_h, out_w, loss, beta);
  return for_storage(features.scalar_type(), [&](auto storage) {
    return matched_loss_forward<decltype(storage)>(
        features, target_features, matched_idxs, out_h, out_w, loss, beta, need_grad);
  });
}

Tensor matched_feature_loss_backward(Tensor grad_rows, Tensor pooled_grad, Tensor features) {
  check_matched_loss_backward(grad_rows, pooled_grad, features);
  const CurrentDevice device(features);
  const ScalarType acc = accumulate_dtype(features.scalar_type());
  const Tensor upstream = packed(grad_rows, acc), pooled = packed(pooled_grad, acc);
  Tensor grad = make(features, shape_of(features), features.scalar_type());
  for_storage(features.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    using T = Accumulate<S>;
    unpool_windows(
        data<const T>(upstream), data<const T>(pooled), features.size(0), features.size(1), int(features.size(2)),
        int(features.size(3)), int(pooled.size(2)), int(pooled.size(3)), data<S>(grad), device.stream());
  });
  device.check_launch();
  return grad;
}

// ---- logits ----

// launch(LogitsLoss<S>) for the storage type of the logits.
template <typename Launch>
std::tuple<Tensor, Tensor> logits_loss(
    const Tensor& student, const Tensor& teacher, const Tensor& matched_idxs, double temperature, int64_t mode,
    int64_t background, bool need_grad, const Launch& launch) {
  const int64_t classes = check_logits(student, teacher, matched_idxs, temperature, background);
  const CurrentDevice device(student);
  const ScalarType dtype = student.scalar_type();
  const int64_t count = student.size(0), columns = student.size(1);
  const Tensor matched = packed(matched_idxs);
  Tensor rows = make(student, {count}, accumulate_dtype(dtype));
  Tensor grad = make(student, need_grad ? Shape{count, columns} : Shape{0}, dtype);
  for_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    using T = Accumulate<S>;
    launch(
        LogitsLoss<S>{
            data<const S>(student), data<const S>(teacher), student.stride(0), student.stride(1), teacher.stride(0),
            teacher.stride(1), data<const int64_t>(matched), count, teacher.size(0), classes, columns, T(temperature),
            int(background), int(mode), data<T>(rows), need_grad ? data<S>(grad) : nullptr},
        device.stream());
  });
  device.check_launch();
  return {rows, grad};
}

std::tuple<Tensor, Tensor> kd_softmax_loss(
    Tensor student, Tensor teacher, Tensor matched, double temperature, int64_t background, bool need_grad) {
  return logits_loss(
      student, teacher, matched, temperature, 0, background, need_grad,
      [](const auto& args, cudaStream_t stream) { kd_softmax_rows(args, stream); });
}

std::tuple<Tensor, Tensor> kd_sigmoid_loss(
    Tensor student, Tensor teacher, Tensor matched, double temperature, int64_t mode, int64_t background, bool need_grad) {
  if (mode < 0 || mode > 1) fail("mode must be 0 or 1, found ", mode);
  return logits_loss(
      student, teacher, matched, temperature, mode, background, need_grad,
      [](const auto& args, cudaStream_t stream) { kd_sigmoid_rows(args, stream); });
}

Tensor scale_rows(Tensor grad_rows, Tensor row_grads, Tensor input) {
  check_scale_rows(grad_rows, row_grads, input);
  const CurrentDevice device(input);
  const ScalarType dtype = input.scalar_type();
  const Tensor upstream = to_dtype(grad_rows, accumulate_dtype(dtype)), grads = packed(row_grads, dtype);
  Tensor out = make(grads, shape_of(grads), dtype);
  const int64_t count = grads.size(0), width = count ? grads.numel() / count : 0;
  for_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    multiply_rows(
        data<const Accumulate<S>>(upstream), upstream.stride(0), data<const S>(grads), count, width, data<S>(out),
        device.stream());
  });
  device.check_launch();
  return out;
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CLS2DET_KEY, m) {
  m.impl("roi_crop", TORCH_BOX(&cls2det::roi_crop));
  m.impl("roi_crop_backward", TORCH_BOX(&cls2det::roi_crop_backward));
  m.impl("roi_avg_pool", TORCH_BOX(&cls2det::roi_avg_pool));
  m.impl("roi_avg_pool_backward", TORCH_BOX(&cls2det::roi_avg_pool_backward));
  m.impl("roi_feature_loss", TORCH_BOX(&cls2det::roi_feature_loss));
  m.impl("roi_feature_loss_backward", TORCH_BOX(&cls2det::roi_feature_loss_backward));
  m.impl("matched_feature_loss", TORCH_BOX(&cls2det::matched_feature_loss));
  m.impl("matched_feature_loss_backward", TORCH_BOX(&cls2det::matched_feature_loss_backward));
  m.impl("kd_softmax_loss", TORCH_BOX(&cls2det::kd_softmax_loss));
  m.impl("kd_sigmoid_loss", TORCH_BOX(&cls2det::kd_sigmoid_loss));
  m.impl("scale_rows", TORCH_BOX(&cls2det::scale_rows));
}
