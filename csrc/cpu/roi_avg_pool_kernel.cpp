// roi_avg_pool on the CPU: tasks of (box, channel block) forward and for the boxes, of (image, channel block) for the map,
// so that every sum has one owner and one order.
#include "cpu/roi_pool.h"

namespace cls2det {
namespace {

template <typename T>
struct RoiPoolArgs {
  RoiSide<T> side;
  RoiPooling pooling;
  const T* grad;         // backward: (N, C, bins)
  const Groups* groups;  // backward by features: boxes by image
  T* partial;            // backward by boxes: (N, blocks, 4)
  T* out;                // (N, C, bins) forward, (images, C, height, width) backward by features
};

}  // namespace
}  // namespace cls2det

#define CLS2DET_BODY "cpu/roi_avg_pool_body.h"
#include "cpu/foreach_target.h"

namespace cls2det {
namespace {

template <typename T>
Tensor forward(
    const Tensor& features, const Tensor& boxes, const Tensor& image_index, const RoiPooling& pooling, double scale) {
  const RoiTensors tensors(features, boxes, image_index);
  RoiPoolArgs<T> args{};
  args.side = tensors.side<T>(scale);
  args.pooling = pooling;
  Tensor out = make(tensors.map, {boxes.size(0), features.size(1), pooling.out_h, pooling.out_w}, tensors.map.scalar_type());
  args.out = static_cast<T*>(out.data_ptr());
  const int64_t tasks = args.side.count * CLS2DET_CALL(channel_blocks<T>, args.side.channels);
  torch::stable::parallel_for(
      0, tasks, 1, [&](int64_t begin, int64_t end) { CLS2DET_CALL(roi_avg_pool_tasks<T>, args, begin, end); });
  return to_dtype(out, features.scalar_type());
}

template <typename T>
std::tuple<Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& features, const Tensor& boxes, const Tensor& image_index, const RoiPooling& pooling,
    double scale, bool need_features, bool need_boxes) {
  const RoiTensors tensors(features, boxes, image_index);
  const ScalarType acc = tensors.map.scalar_type();
  const Tensor upstream = packed(grad, acc);
  RoiPoolArgs<T> args{};
  args.side = tensors.side<T>(scale);
  args.pooling = pooling;
  args.grad = static_cast<const T*>(upstream.data_ptr());
  const int64_t count = args.side.count, blocks = CLS2DET_CALL(channel_blocks<T>, args.side.channels);

  Tensor grad_features = make(tensors.map, need_features ? shape_of(features) : Shape{0}, acc);
  if (need_features) {
    const Groups groups(
        count, args.side.images, [&](int64_t n) { return args.side.has_image(n) ? args.side.image_index[n] : -1; });
    args.groups = &groups;
    args.out = static_cast<T*>(grad_features.data_ptr());
    torch::stable::parallel_for(0, args.side.images * blocks, 1, [&](int64_t begin, int64_t end) {
      CLS2DET_CALL(roi_avg_pool_map_tasks<T>, args, begin, end);
    });
  }

  Tensor grad_boxes = make(boxes, need_boxes ? Shape{count, 4} : Shape{0}, acc);
  if (need_boxes) {
    std::vector<T> partial(count * blocks * 4);
    args.partial = partial.data();
    torch::stable::parallel_for(
        0, count * blocks, 1, [&](int64_t begin, int64_t end) { CLS2DET_CALL(roi_avg_pool_box_tasks<T>, args, begin, end); });
    T* out = static_cast<T*>(grad_boxes.data_ptr());
    for (int64_t n = 0; n < count; ++n) {
      T sums[4] = {};
      for (int64_t block = 0; block < blocks; ++block) {
        for (int e = 0; e < 4; ++e) sums[e] += partial[(n * blocks + block) * 4 + e];
      }
      if (args.side.has_image(n)) {
        write_box_gradient(args.side, pooling, n, sums, out + 4 * n);
      } else {
        std::fill(out + 4 * n, out + 4 * n + 4, T(0));
      }
    }
  }
  return {to_dtype(grad_features, features.scalar_type()), grad_boxes};
}

Tensor roi_avg_pool(
    Tensor features, Tensor boxes, Tensor image_index, int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w,
    double spatial_scale, bool border, bool clip) {
  check_roi(features, boxes, image_index);
  check_sizes(out_h, out_w, samples_h, samples_w);
  check_positive("spatial_scale", spatial_scale);
  const RoiPooling pooling{int(out_h), int(out_w), int(samples_h), int(samples_w), border, clip};
  return (features.scalar_type() == ScalarType::Double ? forward<double> : forward<float>)(features, boxes, image_index,
                                                                                           pooling, spatial_scale);
}

std::tuple<Tensor, Tensor> roi_avg_pool_backward(
    Tensor grad, Tensor features, Tensor boxes, Tensor image_index, int64_t samples_h, int64_t samples_w, double spatial_scale,
    bool border, bool clip, bool need_features, bool need_boxes) {
  check_roi(features, boxes, image_index);
  check_roi_grad(grad, features, boxes);
  check_sizes(grad.size(2), grad.size(3), samples_h, samples_w);
  check_positive("spatial_scale", spatial_scale);
  const RoiPooling pooling{int(grad.size(2)), int(grad.size(3)), int(samples_h), int(samples_w), border, clip};
  return (features.scalar_type() == ScalarType::Double ? backward<double> : backward<float>)(grad, features, boxes, image_index,
                                                                                             pooling, spatial_scale,
                                                                                             need_features, need_boxes);
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(cls2det, CPU, m) {
  m.impl("roi_avg_pool", TORCH_BOX(&cls2det::roi_avg_pool));
  m.impl("roi_avg_pool_backward", TORCH_BOX(&cls2det::roi_avg_pool_backward));
}
