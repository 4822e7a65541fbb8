// From tensors to launchers for the operators on whole maps, for a stem, and for the anchors of a map's places; see
// operators.cpp.
#include <optional>

#include "cuda/tensors.h"
#include "dense_map.h"
#include "frozen_stem.h"

namespace cls2det {
namespace {

template <typename T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? data<const T>(*tensor) : nullptr;
}

// The arguments of both directions, without outputs.
template <typename S>
MaskedLoss<S> masked_loss(const MaskedMaps& maps) {
  using T = Accumulate<S>;
  MaskedLoss<S> args{};
  args.shape = maps.student.shape;
  args.student = data<const S>(maps.student.map);
  args.teacher = data<const S>(maps.teacher.map);
  args.student_stride = maps.student.stride;
  args.teacher_stride = maps.teacher.stride;
  args.outer_mask = data_or_null<T>(maps.outer_mask);
  args.inner_mask = data_or_null<T>(maps.inner_mask);
  return args;
}

Tensor masked_feature_loss(Tensor student, Tensor teacher, std::optional<Tensor> mask, std::optional<Tensor> channel_mask) {
  check_masked_loss(student, teacher, mask, channel_mask);
  const CurrentDevice device(student);
  const ScalarType acc = accumulate_dtype(student.scalar_type());
  const MaskedMaps maps(student, teacher, mask, channel_mask);
  const int64_t images = student.size(0);
  Tensor rows = make(student, {images}, acc);
  const Tensor partial = make(student, {images, masked_tiles(maps.student.shape)}, acc);
  for_storage(student.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    MaskedLoss<S> args = masked_loss<S>(maps);
    args.partial = data<Accumulate<S>>(partial);
    masked_sums(args, data<Accumulate<S>>(rows), device.stream());
  });
  device.check_launch();
  return rows;
}

std::tuple<Tensor, Tensor> masked_feature_loss_backward(
    Tensor grad_rows, Tensor student, Tensor teacher, std::optional<Tensor> mask, std::optional<Tensor> channel_mask,
    bool need_student, bool need_teacher) {
  check_masked_loss(student, teacher, mask, channel_mask);
  check_grad_rows(grad_rows, student);
  const CurrentDevice device(student);
  const ScalarType dtype = student.scalar_type();
  const MaskedMaps maps(student, teacher, mask, channel_mask);
  const Tensor upstream = packed(grad_rows, accumulate_dtype(dtype));
  const auto gradient = [&](bool needed) {
    return needed ? make_map(student, maps.channels_last, dtype) : make(student, {0}, dtype);
  };
  const Tensor grad_student = gradient(need_student), grad_teacher = gradient(need_teacher);
  for_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    MaskedLoss<S> args = masked_loss<S>(maps);
    args.grad_rows = data<const Accumulate<S>>(upstream);
    args.grad_student = need_student ? data<S>(grad_student) : nullptr;
    args.grad_teacher = need_teacher ? data<S>(grad_teacher) : nullptr;
    masked_gradients(args, device.stream());
  });
  device.check_launch();
  return {grad_student, grad_teacher};
}

template <typename S>
AttentionMeans<S> attention(const DenseMap& dense, bool absolute) {
  AttentionMeans<S> args{};
  args.shape = dense.shape;
  args.features = data<const S>(dense.map);
  args.stride = dense.stride;
  args.absolute = absolute;
  return args;
}

std::tuple<Tensor, Tensor> attention_means(Tensor features, bool absolute) {
  check_map("features", features);
  const CurrentDevice device(features);
  const ScalarType acc = accumulate_dtype(features.scalar_type());
  const bool last = is_channels_last(features);
  const DenseMap dense(features, last);
  const DenseShape& shape = dense.shape;
  const AttentionTiles tiles = attention_tiles(shape);
  Tensor spatial = make(features, {features.size(0), features.size(2), features.size(3)}, acc);
  Tensor channel = make(features, {features.size(0), features.size(1)}, acc);
  const Tensor outer_partial = make(features, {shape.images, tiles.across, shape.outer}, acc);
  const Tensor inner_partial = make(features, {shape.images, tiles.down, shape.inner}, acc);
  for_storage(features.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    using T = Accumulate<S>;
    AttentionMeans<S> args = attention<S>(dense, absolute);
    args.outer_means = data<T>(last ? spatial : channel);
    args.inner_means = data<T>(last ? channel : spatial);
    args.outer_partial = data<T>(outer_partial);
    args.inner_partial = data<T>(inner_partial);
    attention_sums(args, device.stream());
  });
  device.check_launch();
  return {spatial, channel};
}

Tensor attention_means_backward(Tensor grad_spatial, Tensor grad_channel, Tensor features, bool absolute) {
  check_attention_backward(grad_spatial, grad_channel, features);
  const CurrentDevice device(features);
  const ScalarType dtype = features.scalar_type(), acc = accumulate_dtype(dtype);
  const bool last = is_channels_last(features);
  const DenseMap dense(features, last);
  const Tensor spatial = packed(grad_spatial, acc), channel = packed(grad_channel, acc);
  Tensor grad = make_map(features, last, dtype);
  for_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    using T = Accumulate<S>;
    AttentionMeans<S> args = attention<S>(dense, absolute);
    args.outer_grad = data<const T>(last ? spatial : channel);
    args.inner_grad = data<const T>(last ? channel : spatial);
    args.grad = data<S>(grad);
    attention_gradients(args, device.stream());
  });
  device.check_launch();
  return grad;
}

std::tuple<Tensor, Tensor> frozen_stem(
    Tensor images, Tensor weight, Tensor bias, int64_t stride, int64_t padding, bool need_grad) {
  check_stem(images, weight, bias, stride, padding);
  const CurrentDevice device(images);
  const StemShape shape = stem_shape(weight, images.size(0), images.size(2), images.size(3), stride, padding);
  const ScalarType dtype = images.scalar_type(), acc = accumulate_dtype(dtype);
  const Tensor from = packed(images), kernel = packed(weight, acc), offset = packed(bias, acc);
  const Shape sizes{shape.images, shape.channels, shape.out_h, shape.out_w};
  Tensor out = make(images, sizes, dtype), index = make(images, need_grad ? sizes : Shape{0}, ScalarType::Byte);
  for_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    using T = Accumulate<S>;
    stem(
        shape, data<const S>(from), data<const T>(kernel), data<const T>(offset), data<S>(out),
        need_grad ? data<uint8_t>(index) : nullptr, device.stream());
  });
  device.check_launch();
  return {out, index};
}

Tensor frozen_stem_backward(
    Tensor grad, Tensor index, Tensor weight, int64_t height, int64_t width, int64_t stride, int64_t padding) {
  check_stem_backward(grad, index, weight, height, width, stride, padding);
  const CurrentDevice device(grad);
  const ScalarType dtype = grad.scalar_type();
  const StemShape shape = stem_shape(weight, grad.size(0), height, width, stride, padding);
  const Tensor upstream = packed(grad, dtype), chosen = packed(index);
  const Tensor kernel = packed(weight, accumulate_dtype(dtype));
  Tensor out = make(grad, {shape.images, shape.inputs, height, width}, dtype);
  for_storage(dtype, [&](auto storage) {
    using S = decltype(storage);
    stem_backward(
        shape, data<const S>(upstream), data<const uint8_t>(chosen), data<const Accumulate<S>>(kernel), data<S>(out),
        device.stream());
  });
  device.check_launch();
  return out;
}

template <typename T>
void mark_anchors(
    const Tensor& anchors, const Boxes& truths, const Shape& level_sizes, double factor, int64_t assignment, const Tensor& mask,
    cudaStream_t stream) {
  const BoxList<T> list = truths.list<T>(1.0);
  const int levels = int(level_sizes.size());
  const Tensor thresholds = make(anchors, {list.count, levels}, anchors.scalar_type());
  ImitationMask<T> args{};
  args.anchors = data<const T>(anchors);
  args.boxes = list.boxes;
  args.image_index = list.image_index;
  args.boxes_count = list.count;
  args.images = mask.size(0);
  args.levels = levels;
  args.assignment = int(assignment);
  for (int l = 0; l < levels; ++l) args.level_begin[l + 1] = args.level_begin[l] + level_sizes[l];
  args.factor = T(factor);
  args.thresholds = data<T>(thresholds);
  args.mask = data<bool>(mask);
  imitation_marks(args, stream);
}

Tensor imitation_mask(
    Tensor anchors, Tensor boxes, Tensor image_index, int64_t images, Shape level_sizes, double factor, int64_t assignment) {
  check_imitation(anchors, boxes, image_index, images, level_sizes, factor, assignment);
  const CurrentDevice device(anchors);
  const Boxes truths(boxes, image_index);
  Tensor mask = make(anchors, {images, anchors.size(0)}, ScalarType::Bool);
  (anchors.scalar_type() == ScalarType::Double ? mark_anchors<double> : mark_anchors<float>)(packed(anchors), truths,
                                                                                             level_sizes, factor, assignment,
                                                                                             mask, device.stream());
  device.check_launch();
  return mask;
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CLS2DET_KEY, m) {
  m.impl("masked_feature_loss", TORCH_BOX(&cls2det::masked_feature_loss));
  m.impl("masked_feature_loss_backward", TORCH_BOX(&cls2det::masked_feature_loss_backward));
  m.impl("attention_means", TORCH_BOX(&cls2det::attention_means));
  m.impl("attention_means_backward", TORCH_BOX(&cls2det::attention_means_backward));
  m.impl("frozen_stem", TORCH_BOX(&cls2det::frozen_stem));
  m.impl("frozen_stem_backward", TORCH_BOX(&cls2det::frozen_stem_backward));
  m.impl("imitation_mask", TORCH_BOX(&cls2det::imitation_mask));
}
