// roi_crop on the CPU: rows are resampled along x once, then blended; no image is replicated and no grid is made.
#include "roi_crop.h"

#include "cpu/roi_pool.h"

namespace cls2det {
namespace {

// The taps of every sample of one axis, as arrays for the vector loops.
template <typename T>
struct SampleAxis {
  std::vector<int> pixel0, pixel1;
  std::vector<T> weight0, weight1, slope0, slope1, a;
  int samples = 0, first = 0, last = -1;  // the pixels read, both inclusive
  bool all_read = true;                   // no sample has a pixel of weight and slope 0

  void build(T lo, T hi, int n, int size, bool border) {
    samples = n;
    first = size, last = -1;
    all_read = true;
    for (auto* pixels : {&pixel0, &pixel1}) pixels->resize(n);
    for (auto* values : {&weight0, &weight1, &slope0, &slope1, &a}) values->resize(n);
    for (int i = 0; i < n; ++i) {
      const Tap<T> tap = sample_tap(lo, hi, i, n, size, border);
      pixel0[i] = tap.pixel0, pixel1[i] = tap.pixel1;
      weight0[i] = tap.weight0, weight1[i] = tap.weight1;
      slope0[i] = tap.slope0, slope1[i] = tap.slope1;
      a[i] = tap.a;
      all_read = all_read && (tap.weight0 != T(0) || tap.slope0 != T(0)) && (tap.weight1 != T(0) || tap.slope1 != T(0));
      first = std::min(first, std::min(tap.pixel0, tap.pixel1));
      last = std::max(last, std::max(tap.pixel0, tap.pixel1));
    }
  }
};

template <typename T>
struct RoiCropArgs {
  RoiView<T> roi;
  Pooling pooling;
  T* out;                // (N, C, h, w)
  const T* grad;         // (N, C, h, w)
  T* grad_boxes;         // (N, 4)
  T* grad_images;        // (images, C, height, width)
  const Groups* groups;  // boxes by image
};

}  // namespace
}  // namespace cls2det

#define CLS2DET_BODY "cpu/roi_crop_body.h"
#include "cpu/foreach_target.h"

namespace cls2det {
namespace {

template <typename T>
RoiCropArgs<T> arguments(const RoiCall& call, const RoiTensors& tensors) {
  RoiCropArgs<T> args{};
  args.roi = tensors.view<T>(call.spatial_scale);
  args.pooling = call.pooling;
  return args;
}

template <typename T>
Tensor forward(const RoiCall& call) {
  const RoiTensors tensors(call.map, call.boxes, call.image_index);
  RoiCropArgs<T> args = arguments<T>(call, tensors);
  const int64_t count = args.roi.boxes.count, channels = args.roi.map.channels;
  Tensor out = make(tensors.map, {count, channels, args.pooling.out_h, args.pooling.out_w}, tensors.map.scalar_type());
  args.out = data<T>(out);
  torch::stable::parallel_for(
      0, count, 1, [&](int64_t begin, int64_t end) { CLS2DET_CALL(roi_crop_boxes<T>, args, begin, end); });
  return to_dtype(out, call.map.scalar_type());
}

template <typename T>
std::tuple<Tensor, Tensor> backward(const RoiCall& call, const Tensor& grad, bool need_images, bool need_boxes) {
  const RoiTensors tensors(call.map, call.boxes, call.image_index);
  const ScalarType acc = tensors.map.scalar_type();
  const Tensor upstream = packed(grad, acc);
  RoiCropArgs<T> args = arguments<T>(call, tensors);
  args.grad = data<const T>(upstream);
  const RoiView<T>& roi = args.roi;
  const int64_t count = roi.boxes.count, images = roi.map.images;
  Tensor grad_boxes = make(call.boxes, need_boxes ? Shape{count, 4} : Shape{0}, acc);
  if (need_boxes) {
    args.grad_boxes = data<T>(grad_boxes);
    torch::stable::parallel_for(
        0, count, 1, [&](int64_t begin, int64_t end) { CLS2DET_CALL(roi_crop_box_gradients<T>, args, begin, end); });
  }
  Tensor grad_images = make(tensors.map, need_images ? shape_of(call.map) : Shape{0}, acc);
  if (need_images) {
    const Groups groups(count, images, [&](int64_t n) { return roi.has_image(n) ? roi.boxes.image_index[n] : -1; });
    args.groups = &groups;
    args.grad_images = data<T>(grad_images);
    torch::stable::parallel_for(0, images * roi.map.channels, 1, [&](int64_t begin, int64_t end) {
      CLS2DET_CALL(roi_crop_image_gradients<T>, args, begin, end);
    });
  }
  return {to_dtype(grad_images, call.map.scalar_type()), grad_boxes};
}

Tensor crop(const RoiCall& call) {
  return call.map.scalar_type() == ScalarType::Double ? forward<double>(call) : forward<float>(call);
}

std::tuple<Tensor, Tensor> crop_backward(const RoiCall& call, const Tensor& grad, bool need_images, bool need_boxes) {
  const bool wide = call.map.scalar_type() == ScalarType::Double;
  return (wide ? backward<double> : backward<float>)(call, grad, need_images, need_boxes);
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_FRAGMENT(CLS2DET_NAMESPACE, m) {
  m.def("roi_crop(Tensor images, Tensor boxes, Tensor image_index, int out_h, int out_w, bool border, bool clip) -> Tensor");
  m.def(
      "roi_crop_backward(Tensor grad, Tensor images, Tensor boxes, Tensor image_index, bool border, bool clip, "
      "bool need_images, bool need_boxes) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CPU, m) {
  m.impl("roi_crop", TORCH_BOX(&cls2det::roi_crop<cls2det::crop>));
  m.impl("roi_crop_backward", TORCH_BOX(&cls2det::roi_crop_backward<cls2det::crop_backward>));
}
