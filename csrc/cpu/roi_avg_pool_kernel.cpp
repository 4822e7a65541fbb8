// roi_avg_pool on the CPU: tasks of (box, channel block) forward and for the boxes, of (image, channel block) for the map,
// so that every sum has one owner and one order.
#include "roi_avg_pool.h"

#include "cpu/roi_pool.h"

namespace cls2det {
namespace {

template <typename T>
struct RoiPoolArgs {
  RoiView<T> roi;
  Pooling pooling;
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
Tensor forward(const RoiCall& call) {
  const RoiTensors tensors(call.map, call.boxes, call.image_index);
  RoiPoolArgs<T> args{};
  args.roi = tensors.view<T>(call.spatial_scale);
  args.pooling = call.pooling;
  const int64_t count = args.roi.boxes.count, channels = args.roi.map.channels;
  Tensor out = make(tensors.map, {count, channels, args.pooling.out_h, args.pooling.out_w}, tensors.map.scalar_type());
  args.out = data<T>(out);
  const int64_t tasks = count * CLS2DET_CALL(channel_blocks<T>, channels);
  torch::stable::parallel_for(
      0, tasks, 1, [&](int64_t begin, int64_t end) { CLS2DET_CALL(roi_avg_pool_tasks<T>, args, begin, end); });
  return to_dtype(out, call.map.scalar_type());
}

template <typename T>
std::tuple<Tensor, Tensor> backward(const RoiCall& call, const Tensor& grad, bool need_features, bool need_boxes) {
  const RoiTensors tensors(call.map, call.boxes, call.image_index);
  const ScalarType acc = tensors.map.scalar_type();
  const Tensor upstream = packed(grad, acc);
  RoiPoolArgs<T> args{};
  args.roi = tensors.view<T>(call.spatial_scale);
  args.pooling = call.pooling;
  args.grad = data<const T>(upstream);
  const RoiView<T>& roi = args.roi;
  const int64_t count = roi.boxes.count, images = roi.map.images;
  const int64_t blocks = CLS2DET_CALL(channel_blocks<T>, roi.map.channels);

  Tensor grad_features = make(tensors.map, need_features ? shape_of(call.map) : Shape{0}, acc);
  if (need_features) {
    const Groups groups(count, images, [&](int64_t n) { return roi.has_image(n) ? roi.boxes.image_index[n] : -1; });
    args.groups = &groups;
    args.out = data<T>(grad_features);
    torch::stable::parallel_for(
        0, images * blocks, 1, [&](int64_t begin, int64_t end) { CLS2DET_CALL(roi_avg_pool_map_tasks<T>, args, begin, end); });
  }

  Tensor grad_boxes = make(call.boxes, need_boxes ? Shape{count, 4} : Shape{0}, acc);
  if (need_boxes) {
    std::vector<T> partial(count * blocks * 4);
    args.partial = partial.data();
    torch::stable::parallel_for(
        0, count * blocks, 1, [&](int64_t begin, int64_t end) { CLS2DET_CALL(roi_avg_pool_box_tasks<T>, args, begin, end); });
    T* out = data<T>(grad_boxes);
    for (int64_t n = 0; n < count; ++n) {
      T sums[4] = {};
      for (int64_t block = 0; block < blocks; ++block) {
        for (int e = 0; e < 4; ++e) sums[e] += partial[(n * blocks + block) * 4 + e];
      }
      if (roi.has_image(n)) {
        write_box_gradient(roi, args.pooling, n, sums, out + 4 * n);
      } else {
        std::fill(out + 4 * n, out + 4 * n + 4, T(0));
      }
    }
  }
  return {to_dtype(grad_features, call.map.scalar_type()), grad_boxes};
}

Tensor pool(const RoiCall& call) {
  return call.map.scalar_type() == ScalarType::Double ? forward<double>(call) : forward<float>(call);
}

std::tuple<Tensor, Tensor> pool_backward(const RoiCall& call, const Tensor& grad, bool need_features, bool need_boxes) {
  const bool wide = call.map.scalar_type() == ScalarType::Double;
  return (wide ? backward<double> : backward<float>)(call, grad, need_features, need_boxes);
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_FRAGMENT(CLS2DET_NAMESPACE, m) {
  m.def(
      "roi_avg_pool(Tensor features, Tensor boxes, Tensor image_index, int out_h, int out_w, int samples_h, "
      "int samples_w, float spatial_scale, bool border, bool clip) -> Tensor");
  m.def(
      "roi_avg_pool_backward(Tensor grad, Tensor features, Tensor boxes, Tensor image_index, int samples_h, "
      "int samples_w, float spatial_scale, bool border, bool clip, bool need_features, bool need_boxes) "
      "-> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CPU, m) {
  m.impl("roi_avg_pool", TORCH_BOX(&cls2det::roi_avg_pool<cls2det::pool>));
  m.impl("roi_avg_pool_backward", TORCH_BOX(&cls2det::roi_avg_pool_backward<cls2det::pool_backward>));
}
