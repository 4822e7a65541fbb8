// The CUDA operators: tensors in, launchers of kernels.h, tensors out. The only file here that knows torch.
//
// CLS2DET_NAMESPACE and CLS2DET_KEY let a test build register the same code a second time for CPU tensors.
#include <algorithm>
#include <limits>

#include "checks.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "math/divergence.h"

#if !defined(CLS2DET_NAMESPACE)
#define CLS2DET_NAMESPACE cls2det
#define CLS2DET_KEY CUDA
#endif

namespace cls2det {
namespace {

template <typename T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Calls f with a null pointer to the storage type of `dtype`.
template <typename F>
auto by_dtype(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Double: return f(static_cast<double*>(nullptr));
    case ScalarType::Half: return f(static_cast<Half*>(nullptr));
    case ScalarType::BFloat16: return f(static_cast<BFloat16*>(nullptr));
    default: return f(static_cast<float*>(nullptr));
  }
}
#define STORAGE_OF(argument) std::remove_pointer_t<decltype(argument)>

void check_blocks(int64_t blocks) {
  if (blocks > std::numeric_limits<int32_t>::max()) fail("the call needs ", blocks, " thread blocks, more than a grid has");
}

RoiPooling pooling_of(int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w, bool border, bool clip) {
  check_sizes(out_h, out_w, samples_h, samples_w);
  if (out_w > 1024 || out_h > 1024) fail("output sizes above 1024 are not supported on CUDA");
  return {int(out_h), int(out_w), int(samples_h), int(samples_w), border, clip};
}

// The tensors behind a RoiSide, kept alive, and the tables of its boxes.
template <typename S>
struct Side {
  using A = Accumulate<S>;
  Tensor map, boxes, image_index;
  Tensor memory[4];
  RoiSide<S> side;
  RoiTables<A> tables{};

  Side(const Tensor& features, const Tensor& b, const Tensor& index, double scale)
      : map(features), boxes(contiguous(b)), image_index(contiguous(index)) {
    side = {pointer<const S>(map), map.size(0), map.size(1), map.stride(0), map.stride(1), map.stride(2), map.stride(3),
            int(map.size(2)), int(map.size(3)), pointer<const A>(boxes), pointer<const int64_t>(image_index), boxes.size(0), A(scale)};
  }

  void make_tables(const RoiPooling& pooling, cudaStream_t stream) {
    tables.x = table(pooling.out_w, pooling.samples_w, 0);
    tables.y = table(pooling.out_h, pooling.samples_h, 2);
    check_blocks(side.count * (pooling.out_w + pooling.out_h) / kThreads);
    launch_roi_tables(side, pooling, tables, stream);
  }

 private:
  AxisTable<A> table(int bins, int samples, int slot) {
    const int64_t capacity = axis_capacity(samples, bins);
    memory[slot] = make(boxes, {side.count * bins * capacity * int64_t(sizeof(AxisEntry<A>))}, ScalarType::Byte);
    memory[slot + 1] = make(boxes, {side.count * bins}, ScalarType::Int);
    return {pointer<AxisEntry<A>>(memory[slot]), pointer<int>(memory[slot + 1]), bins, samples, int(capacity)};
  }
};

void check_roi(const Tensor& features, const Tensor& boxes, const Tensor& image_index) {
  check_map("features", features);
  check_boxes("boxes", boxes, features);
  check_index("image_index", image_index, boxes.size(0));
}

Tensor roi_crop(Tensor images, Tensor boxes, Tensor image_index, int64_t out_h, int64_t out_w, bool border, bool clip) {
  check_roi(images, boxes, image_index);
  const RoiPooling pooling = pooling_of(out_h, out_w, out_h, out_w, border, clip);
  const DeviceScope device(images);
  Tensor out = make(images, {boxes.size(0), images.size(1), out_h, out_w}, images.scalar_type());
  check_blocks(boxes.size(0) * out_h * out_w / kThreads);
  by_dtype(images.scalar_type(), [&](auto* storage) {
    using S = STORAGE_OF(storage);
    launch_roi_crop(Side<S>(images, boxes, image_index, 1.0).side, pooling, pointer<S>(out), device.stream());
  });
  device.check_launches();
  return out;
}

// d / d features of both pooling and cropping, from grad (N, C, bins).
template <typename S>
Tensor spread(Side<S>& side, const RoiPooling& pooling, const Tensor& grad, const DeviceScope& device) {
  const ScalarType acc = accumulate_dtype(side.map.scalar_type());
  Tensor out = make_zeros(side.map, shape_of(side.map), acc);
  check_blocks(side.side.images * side.side.channels);
  side.make_tables(pooling, device.stream());
  launch_roi_spread(side.side, pooling, side.tables, pointer<const Accumulate<S>>(grad), pointer<Accumulate<S>>(out), device.stream());
  return to_dtype(out, side.map.scalar_type());
}

std::tuple<Tensor, Tensor> roi_crop_backward(
    Tensor grad, Tensor images, Tensor boxes, Tensor image_index, bool border, bool clip, bool need_images, bool need_boxes) {
  check_roi(images, boxes, image_index);
  check_dim("grad", grad, 4);
  check_size("grad", grad, 0, boxes.size(0));
  check_size("grad", grad, 1, images.size(1));
  const RoiPooling pooling = pooling_of(grad.size(2), grad.size(3), grad.size(2), grad.size(3), border, clip);
  const DeviceScope device(images);
  const ScalarType acc = accumulate_dtype(images.scalar_type());
  const Tensor upstream = contiguous(to_dtype(grad, acc));
  Tensor grad_images = make(images, {0}, images.scalar_type());
  Tensor grad_boxes = make(boxes, need_boxes ? Shape{boxes.size(0), 4} : Shape{0}, acc);
  by_dtype(images.scalar_type(), [&](auto* storage) {
    using S = STORAGE_OF(storage);
    Side<S> side(images, boxes, image_index, 1.0);
    if (need_images) grad_images = spread(side, pooling, upstream, device);
    if (need_boxes) {
      launch_roi_crop_boxes(
          side.side, pooling, pointer<const Accumulate<S>>(upstream), pointer<Accumulate<S>>(grad_boxes), device.stream());
    }
  });
  device.check_launches();
  return {grad_images, grad_boxes};
}

Tensor roi_avg_pool(
    Tensor features, Tensor boxes, Tensor image_index, int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w,
    double spatial_scale, bool border, bool clip) {
  check_roi(features, boxes, image_index);
  check_positive("spatial_scale", spatial_scale);
  const RoiPooling pooling = pooling_of(out_h, out_w, samples_h, samples_w, border, clip);
  const DeviceScope device(features);
  Tensor out = make(features, {boxes.size(0), features.size(1), out_h, out_w}, features.scalar_type());
  check_blocks(out.numel() / (kThreads / kWarp));
  by_dtype(features.scalar_type(), [&](auto* storage) {
    using S = STORAGE_OF(storage);
    Side<S> side(features, boxes, image_index, spatial_scale);
    side.make_tables(pooling, device.stream());
    launch_roi_avg_pool(side.side, pooling, side.tables, pointer<S>(out), device.stream());
  });
  device.check_launches();
  return out;
}

std::tuple<Tensor, Tensor> roi_avg_pool_backward(
    Tensor grad, Tensor features, Tensor boxes, Tensor image_index, int64_t samples_h, int64_t samples_w, double spatial_scale,
    bool border, bool clip, bool need_features, bool need_boxes) {
  check_roi(features, boxes, image_index);
  check_positive("spatial_scale", spatial_scale);
  check_dim("grad", grad, 4);
  check_size("grad", grad, 0, boxes.size(0));
  check_size("grad", grad, 1, features.size(1));
  const RoiPooling pooling = pooling_of(grad.size(2), grad.size(3), samples_h, samples_w, border, clip);
  const DeviceScope device(features);
  const ScalarType acc = accumulate_dtype(features.scalar_type());
  const Tensor upstream = contiguous(to_dtype(grad, acc));
  Tensor grad_features = make(features, {0}, features.scalar_type());
  Tensor grad_boxes = make(boxes, need_boxes ? Shape{boxes.size(0), 4} : Shape{0}, acc);
  by_dtype(features.scalar_type(), [&](auto* storage) {
    using S = STORAGE_OF(storage);
    using A = Accumulate<S>;
    Side<S> side(features, boxes, image_index, spatial_scale);
    if (need_features) grad_features = spread(side, pooling, upstream, device);
    if (need_boxes) {
      if (!need_features) side.make_tables(pooling, device.stream());
      const int64_t chunks = channel_chunks(side.side, pooling);
      check_blocks(side.side.count * chunks);
      const Tensor partial = make(boxes, {side.side.count * chunks * 4}, acc);
      launch_roi_avg_pool_boxes(
          side.side, pooling, side.tables, pointer<const A>(upstream), chunks, pointer<A>(partial), pointer<A>(grad_boxes),
          device.stream());
    }
  });
  device.check_launches();
  return {grad_features, grad_boxes};
}

struct LossCall {  // the arguments of roi_feature_loss and its backward, as the schema has them
  Tensor features, boxes, image_index, target_features, target_boxes, target_image_index, matched_idxs;
  RoiPooling pooling;
  double spatial_scale, target_spatial_scale;
  int64_t loss;
  double beta;

  void check() const {
    check_roi(features, boxes, image_index);
    check_roi(target_features, target_boxes, target_image_index);
    check_dtype("target_features", target_features, features.scalar_type());
    check_size("target_features", target_features, 1, features.size(1));
    check_index("matched_idxs", matched_idxs, boxes.size(0));
    check_positive("spatial_scale", spatial_scale);
    check_positive("target_spatial_scale", target_spatial_scale);
    check_positive("beta", beta);
    if (loss < 0 || loss > 2) fail("loss must be 0, 1 or 2, found ", loss);
  }
};

// Both sides' tables and the pooled ground truths, each once.
template <typename S>
struct LossState {
  using A = Accumulate<S>;
  Side<S> predicted, target;
  Tensor matched, pooled;
  RoiLoss<S> args;

  LossState(const LossCall& call, const DeviceScope& device)
      : predicted(call.features, call.boxes, call.image_index, call.spatial_scale),
        target(call.target_features, call.target_boxes, call.target_image_index, call.target_spatial_scale),
        matched(contiguous(call.matched_idxs)),
        pooled(make(
            call.boxes, {call.target_boxes.size(0), call.features.size(1), call.pooling.out_h, call.pooling.out_w},
            accumulate_dtype(call.features.scalar_type()))) {
    check_blocks(pooled.numel() / (kThreads / kWarp));
    predicted.make_tables(call.pooling, device.stream());
    target.make_tables(call.pooling, device.stream());
    launch_roi_avg_pool(target.side, call.pooling, target.tables, pointer<A>(pooled), device.stream());
    args = {predicted.side, target.side, call.pooling, predicted.tables, pointer<const A>(pooled), pointer<const int64_t>(matched),
            int(call.loss), A(call.beta)};
  }
};

std::tuple<Tensor, Tensor> roi_feature_loss(
    Tensor features, Tensor boxes, Tensor image_index, Tensor target_features, Tensor target_boxes, Tensor target_image_index,
    Tensor matched_idxs, int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w, double spatial_scale,
    double target_spatial_scale, bool border, bool clip, int64_t loss, double beta, bool need_boxes) {
  const LossCall call{features, boxes, image_index, target_features, target_boxes, target_image_index, matched_idxs,
                      pooling_of(out_h, out_w, samples_h, samples_w, border, clip), spatial_scale, target_spatial_scale, loss, beta};
  call.check();
  const DeviceScope device(features);
  const ScalarType acc = accumulate_dtype(features.scalar_type());
  const int64_t count = boxes.size(0);
  Tensor rows = make(boxes, {count}, acc), grad_boxes = make(boxes, need_boxes ? Shape{count, 4} : Shape{0}, acc);
  by_dtype(features.scalar_type(), [&](auto* storage) {
    using S = STORAGE_OF(storage);
    using A = Accumulate<S>;
    const LossState<S> state(call, device);
    const int64_t chunks = channel_chunks(state.args.side, call.pooling);
    check_blocks(count * chunks);
    const Tensor partial = make(boxes, {count * chunks * 5}, acc);
    launch_roi_feature_loss(
        state.args, chunks, pointer<A>(partial), pointer<A>(rows), need_boxes ? pointer<A>(grad_boxes) : nullptr, device.stream());
  });
  device.check_launches();
  return {rows, grad_boxes};
}

Tensor roi_feature_loss_backward(
    Tensor grad_rows, Tensor features, Tensor boxes, Tensor image_index, Tensor target_features, Tensor target_boxes,
    Tensor target_image_index, Tensor matched_idxs, int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w,
    double spatial_scale, double target_spatial_scale, bool border, bool clip, int64_t loss, double beta) {
  const LossCall call{features, boxes, image_index, target_features, target_boxes, target_image_index, matched_idxs,
                      pooling_of(out_h, out_w, samples_h, samples_w, border, clip), spatial_scale, target_spatial_scale, loss, beta};
  call.check();
  check_dim("grad_rows", grad_rows, 1);
  check_size("grad_rows", grad_rows, 0, boxes.size(0));
  const DeviceScope device(features);
  const ScalarType acc = accumulate_dtype(features.scalar_type());
  const Tensor upstream = contiguous(to_dtype(grad_rows, acc));
  Tensor grad = make_zeros(features, shape_of(features), acc);
  const int64_t planes = features.size(0) * features.size(1);
  check_blocks(planes);
  by_dtype(features.scalar_type(), [&](auto* storage) {
    using S = STORAGE_OF(storage);
    using A = Accumulate<S>;
    const LossState<S> state(call, device);
    const Tensor scratch = make(boxes, {planes * out_h * out_w}, acc);
    launch_roi_feature_loss_backward(state.args, pointer<const A>(upstream), pointer<A>(scratch), pointer<A>(grad), device.stream());
  });
  device.check_launches();
  return to_dtype(grad, features.scalar_type());
}

template <typename S>
Matched<S> matched_arguments(const Tensor& features, int64_t out_h, int64_t out_w) {
  Matched<S> args{};
  args.count = features.size(0), args.channels = features.size(1);
  args.height = int(features.size(2)), args.width = int(features.size(3));
  args.out_h = int(out_h), args.out_w = int(out_w);
  return args;
}

std::tuple<Tensor, Tensor> matched_feature_loss(
    Tensor features, Tensor target_features, Tensor matched_idxs, int64_t out_h, int64_t out_w, int64_t loss, double beta,
    bool need_grad) {
  check_map("features", features);
  check_map("target_features", target_features);
  check_dtype("target_features", target_features, features.scalar_type());
  for (int64_t d = 1; d < 4; ++d) check_size("target_features", target_features, d, features.size(d));
  check_index("matched_idxs", matched_idxs, features.size(0));
  check_positive("beta", beta);
  check_sizes(out_h, out_w, 1, 1);
  if (loss < 0 || loss > 2) fail("loss must be 0, 1 or 2, found ", loss);
  const DeviceScope device(features);
  const ScalarType acc = accumulate_dtype(features.scalar_type());
  const Tensor crops = contiguous(features), truths = contiguous(target_features), matched = contiguous(matched_idxs);
  const int64_t count = crops.size(0), channels = crops.size(1);
  Tensor rows = make(crops, {count}, acc);
  Tensor grad = make(crops, need_grad ? Shape{count, channels, out_h, out_w} : Shape{0}, acc);
  const Tensor pooled = make(crops, {truths.size(0), channels, out_h, out_w}, acc);
  check_blocks(std::max(pooled.numel() / kThreads, count));
  by_dtype(features.scalar_type(), [&](auto* storage) {
    using S = STORAGE_OF(storage);
    using A = Accumulate<S>;
    Matched<S> args = matched_arguments<S>(crops, out_h, out_w);
    args.features = pointer<const S>(crops);
    args.target = pointer<const S>(truths);
    args.matched = pointer<const int64_t>(matched);
    args.targets = truths.size(0);
    args.loss = int(loss);
    args.beta = A(beta);
    launch_matched_feature_loss(args, pointer<A>(pooled), pointer<A>(rows), need_grad ? pointer<A>(grad) : nullptr, device.stream());
  });
  device.check_launches();
  return {rows, grad};
}

Tensor matched_feature_loss_backward(Tensor grad_rows, Tensor pooled_grad, Tensor features) {
  check_map("features", features);
  check_dim("grad_rows", grad_rows, 1);
  check_size("grad_rows", grad_rows, 0, features.size(0));
  check_dim("pooled_grad", pooled_grad, 4);
  for (int64_t d = 0; d < 2; ++d) check_size("pooled_grad", pooled_grad, d, features.size(d));
  const DeviceScope device(features);
  const ScalarType acc = accumulate_dtype(features.scalar_type());
  const Tensor upstream = contiguous(to_dtype(grad_rows, acc)), pooled = contiguous(to_dtype(pooled_grad, acc));
  Tensor grad = make(features, shape_of(features), features.scalar_type());
  check_blocks(grad.numel() / kThreads);
  by_dtype(features.scalar_type(), [&](auto* storage) {
    using S = STORAGE_OF(storage);
    using A = Accumulate<S>;
    launch_matched_feature_loss_backward(
        matched_arguments<S>(features, pooled.size(2), pooled.size(3)), pointer<const A>(upstream), pointer<const A>(pooled),
        pointer<S>(grad), device.stream());
  });
  device.check_launches();
  return grad;
}

// Both logits losses; launch(args, stream) runs the kernel.
template <typename Launch>
std::tuple<Tensor, Tensor> logits_loss(
    const Tensor& student, const Tensor& teacher, const Tensor& matched_idxs, double temperature, int64_t background, int64_t mode,
    bool need_grad, const Launch& launch) {
  const int64_t classes = check_logits(student, teacher, matched_idxs, temperature, background);
  const DeviceScope device(student);
  const Tensor matched = contiguous(matched_idxs);
  const int64_t count = student.size(0), columns = student.size(1);
  Tensor rows = make(student, {count}, accumulate_dtype(student.scalar_type()));
  Tensor grad = make(student, need_grad ? Shape{count, columns} : Shape{0}, student.scalar_type());
  check_blocks(count / (kThreads / kWarp));
  by_dtype(student.scalar_type(), [&](auto* storage) {
    using S = STORAGE_OF(storage);
    using A = Accumulate<S>;
    const Logits<S> args{
        pointer<const S>(student), pointer<const S>(teacher), student.stride(0), student.stride(1), teacher.stride(0),
        teacher.stride(1), pointer<const int64_t>(matched), count, columns, classes, teacher.size(0), A(temperature),
        int(background), int(mode), pointer<A>(rows), need_grad ? pointer<S>(grad) : nullptr};
    launch(args, device.stream());
  });
  device.check_launches();
  return {rows, grad};
}

std::tuple<Tensor, Tensor> kd_softmax_loss(
    Tensor student, Tensor teacher, Tensor matched, double temperature, int64_t background, bool need_grad) {
  return logits_loss(student, teacher, matched, temperature, background, 0, need_grad, [](const auto& args, cudaStream_t stream) {
    launch_kd_softmax_loss(args, stream);
  });
}

std::tuple<Tensor, Tensor> kd_sigmoid_loss(
    Tensor student, Tensor teacher, Tensor matched, double temperature, int64_t mode, int64_t background, bool need_grad) {
  return logits_loss(student, teacher, matched, temperature, background, mode, need_grad, [](const auto& args, cudaStream_t stream) {
    launch_kd_sigmoid_loss(args, stream);
  });
}

Tensor scale_rows(Tensor grad_rows, Tensor row_grads, Tensor input) {
  check_dim("grad_rows", grad_rows, 1);
  if (row_grads.dim() < 1) fail("row_grads must have rows");
  check_size("grad_rows", grad_rows, 0, row_grads.size(0));
  check_floating("row_grads", row_grads);
  const DeviceScope device(row_grads);
  const Tensor rows = contiguous(row_grads), upstream = to_dtype(grad_rows, accumulate_dtype(row_grads.scalar_type()));
  const int64_t count = rows.size(0), width = count ? rows.numel() / count : 0;
  Tensor out = make(rows, shape_of(rows), rows.scalar_type());
  check_blocks(rows.numel() / kThreads);
  by_dtype(rows.scalar_type(), [&](auto* storage) {
    using S = STORAGE_OF(storage);
    launch_scale_rows(
        pointer<const Accumulate<S>>(upstream), upstream.stride(0), pointer<const S>(rows), count, width, pointer<S>(out),
        device.stream());
  });
  device.check_launches();
  return to_dtype(out, input.scalar_type());
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
