// roi_crop on the CPU: rows are resampled along x once, then blended; no image is replicated and no grid is made.
#include "cpu/roi_pool.h"

namespace cls2det {
namespace {

// The taps of every sample of one axis, as arrays for the vector loops.
template <typename T>
struct SampleAxis {
  std::vector<int> pixel0, pixel1;
  std::vector<T> weight0, weight1, slope0, slope1, a;
  int samples = 0, first = 0, last = -1;  // the pixels read, both inclusive

  void build(T lo, T hi, int n, int size, bool border) {
    samples = n;
    first = size, last = -1;
    for (auto* pixels : {&pixel0, &pixel1}) pixels->resize(n);
    for (auto* values : {&weight0, &weight1, &slope0, &slope1, &a}) values->resize(n);
    for (int i = 0; i < n; ++i) {
      const Tap<T> tap = sample_tap(lo, hi, i, n, size, border);
      pixel0[i] = tap.pixel0, pixel1[i] = tap.pixel1;
      weight0[i] = tap.weight0, weight1[i] = tap.weight1;
      slope0[i] = tap.slope0, slope1[i] = tap.slope1;
      a[i] = tap.a;
      first = std::min(first, std::min(tap.pixel0, tap.pixel1));
      last = std::max(last, std::max(tap.pixel0, tap.pixel1));
    }
  }
};

template <typename T>
struct RoiCropArgs {
  RoiSide<T> side;
  int out_h, out_w;
  bool border, clip;
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
RoiCropArgs<T> arguments(const RoiTensors& tensors, int64_t out_h, int64_t out_w, bool border, bool clip) {
  RoiCropArgs<T> args{};
  args.side = tensors.side<T>(1.0);
  args.out_h = int(out_h), args.out_w = int(out_w);
  args.border = border, args.clip = clip;
  return args;
}

template <typename T>
Tensor forward(
    const Tensor& images, const Tensor& boxes, const Tensor& index, int64_t out_h, int64_t out_w, bool border, bool clip) {
  const RoiTensors tensors(images, boxes, index);
  RoiCropArgs<T> args = arguments<T>(tensors, out_h, out_w, border, clip);
  Tensor out = make(tensors.map, {boxes.size(0), images.size(1), out_h, out_w}, tensors.map.scalar_type());
  args.out = static_cast<T*>(out.data_ptr());
  torch::stable::parallel_for(
      0, args.side.count, 1, [&](int64_t begin, int64_t end) { CLS2DET_CALL(roi_crop_boxes<T>, args, begin, end); });
  return to_dtype(out, images.scalar_type());
}

template <typename T>
std::tuple<Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& images, const Tensor& boxes, const Tensor& index, bool border, bool clip,
    bool need_images, bool need_boxes) {
  const RoiTensors tensors(images, boxes, index);
  const ScalarType acc = tensors.map.scalar_type();
  const Tensor upstream = packed(grad, acc);
  RoiCropArgs<T> args = arguments<T>(tensors, grad.size(2), grad.size(3), border, clip);
  args.grad = static_cast<const T*>(upstream.data_ptr());
  Tensor grad_boxes = make(boxes, need_boxes ? Shape{args.side.count, 4} : Shape{0}, acc);
  if (need_boxes) {
    args.grad_boxes = static_cast<T*>(grad_boxes.data_ptr());
    torch::stable::parallel_for(
        0, args.side.count, 1, [&](int64_t begin, int64_t end) { CLS2DET_CALL(roi_crop_box_gradients<T>, args, begin, end); });
  }
  Tensor grad_images = make(tensors.map, need_images ? shape_of(images) : Shape{0}, acc);
  if (need_images) {
    const RoiSide<T>& side = args.side;
    const Groups groups(side.count, side.images, [&](int64_t n) { return side.has_image(n) ? side.image_index[n] : -1; });
    args.groups = &groups;
    args.grad_images = static_cast<T*>(grad_images.data_ptr());
    torch::stable::parallel_for(0, side.images * side.channels, 1, [&](int64_t begin, int64_t end) {
      CLS2DET_CALL(roi_crop_image_gradients<T>, args, begin, end);
    });
  }
  return {to_dtype(grad_images, images.scalar_type()), grad_boxes};
}

Tensor roi_crop(Tensor images, Tensor boxes, Tensor image_index, int64_t out_h, int64_t out_w, bool border, bool clip) {
  check_roi(images, boxes, image_index);
  check_sizes(out_h, out_w, 1, 1);
  return (images.scalar_type() == ScalarType::Double ? forward<double> : forward<float>)(images, boxes, image_index, out_h,
                                                                                         out_w, border, clip);
}

std::tuple<Tensor, Tensor> roi_crop_backward(
    Tensor grad, Tensor images, Tensor boxes, Tensor image_index, bool border, bool clip, bool need_images, bool need_boxes) {
  check_roi(images, boxes, image_index);
  check_roi_grad(grad, images, boxes);
  check_sizes(grad.size(2), grad.size(3), 1, 1);
  return (images.scalar_type() == ScalarType::Double ? backward<double> : backward<float>)(grad, images, boxes, image_index,
                                                                                           border, clip, need_images,
                                                                                           need_boxes);
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(cls2det, CPU, m) {
  m.impl("roi_crop", TORCH_BOX(&cls2det::roi_crop));
  m.impl("roi_crop_backward", TORCH_BOX(&cls2det::roi_crop_backward));
}
