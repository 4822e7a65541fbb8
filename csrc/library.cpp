// Every operator schema in one list, and the Python module that carries the build record.
//
// The meaning of each operator is documented at its public function, cls2det_ops/ops/<op>.py. Conventions: boxes xyxy in
// accumulate dtype (float32; float64 for float64 maps), indices int64, loss 0 l1, 1 l2, 2 smooth_l1; background 0 none,
// 1 first, 2 last; mode 0 bce, 1 l1norm; assignment 0 level, 1 all, 2 best. An output that a need_ flag leaves out is an empty
// tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "compat.h"
#include "cpu/simd_level.h"

STABLE_TORCH_LIBRARY(cls2det, m) {
  m.def("roi_crop(Tensor images, Tensor boxes, Tensor image_index, int out_h, int out_w, bool border, bool clip) -> Tensor");
  m.def(
      "roi_crop_backward(Tensor grad, Tensor images, Tensor boxes, Tensor image_index, bool border, bool clip, "
      "bool need_images, bool need_boxes) -> (Tensor, Tensor)");
  m.def(
      "roi_avg_pool(Tensor features, Tensor boxes, Tensor image_index, int out_h, int out_w, int samples_h, "
      "int samples_w, float spatial_scale, bool border, bool clip) -> Tensor");
  m.def(
      "roi_avg_pool_backward(Tensor grad, Tensor features, Tensor boxes, Tensor image_index, int samples_h, "
      "int samples_w, float spatial_scale, bool border, bool clip, bool need_features, bool need_boxes) "
      "-> (Tensor, Tensor)");
  m.def(
      "roi_feature_loss(Tensor features, Tensor boxes, Tensor image_index, Tensor target_features, Tensor target_boxes, "
      "Tensor target_image_index, Tensor matched_idxs, int out_h, int out_w, int samples_h, int samples_w, "
      "float spatial_scale, float target_spatial_scale, bool border, bool clip, int loss, float beta, bool need_boxes) "
      "-> (Tensor, Tensor)");
  m.def(
      "roi_feature_loss_backward(Tensor grad_rows, Tensor features, Tensor boxes, Tensor image_index, "
      "Tensor target_features, Tensor target_boxes, Tensor target_image_index, Tensor matched_idxs, int out_h, int out_w, "
      "int samples_h, int samples_w, float spatial_scale, float target_spatial_scale, bool border, bool clip, int loss, "
      "float beta) -> Tensor");
  m.def(
      "matched_feature_loss(Tensor features, Tensor target_features, Tensor matched_idxs, int out_h, int out_w, int loss, "
      "float beta, bool need_grad) -> (Tensor, Tensor)");
  m.def("matched_feature_loss_backward(Tensor grad_rows, Tensor pooled_grad, Tensor features) -> Tensor");
  m.def("masked_feature_loss(Tensor student, Tensor teacher, Tensor? mask, Tensor? channel_mask) -> Tensor");
  m.def(
      "masked_feature_loss_backward(Tensor grad_rows, Tensor student, Tensor teacher, Tensor? mask, Tensor? channel_mask, "
      "bool need_student, bool need_teacher) -> (Tensor, Tensor)");
  m.def("attention_means(Tensor features, bool absolute) -> (Tensor, Tensor)");
  m.def("attention_means_backward(Tensor grad_spatial, Tensor grad_channel, Tensor features, bool absolute) -> Tensor");
  m.def("frozen_stem(Tensor images, Tensor weight, Tensor bias, int stride, int padding, bool need_grad) -> (Tensor, Tensor)");
  m.def(
      "frozen_stem_backward(Tensor grad, Tensor index, Tensor weight, int height, int width, int stride, int padding) -> "
      "Tensor");
  m.def(
      "imitation_mask(Tensor anchors, Tensor boxes, Tensor image_index, int images, int[] level_sizes, float factor, "
      "int assignment) -> Tensor");
  m.def(
      "kd_softmax_loss(Tensor student_logits, Tensor teacher_logits, Tensor matched_idxs, float temperature, "
      "int background, bool need_grad) -> (Tensor, Tensor)");
  m.def(
      "kd_sigmoid_loss(Tensor student_logits, Tensor teacher_logits, Tensor matched_idxs, float temperature, int mode, "
      "int background, bool need_grad) -> (Tensor, Tensor)");
  // grad_rows[k] * row_grads[k, ...] in the dtype of input, which is an argument so that a second derivative can be refused
  m.def("scale_rows(Tensor grad_rows, Tensor row_grads, Tensor input) -> Tensor");
}

#define CLS2DET_STRING_(x) #x
#define CLS2DET_STRING(x) CLS2DET_STRING_(x)

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels and operator schemas of cls2det_ops";
  m.def(
      "build_info",
      [] {
        return std::map<std::string, std::string>{
            {"compiler", __VERSION__},
            {"build_torch", CLS2DET_BUILD_TORCH},
            {"torch_target", CLS2DET_STRING(TORCH_TARGET_VERSION)},
            {"cuda_version", CLS2DET_CUDA_VERSION},
            {"cuda_archs", CLS2DET_CUDA_ARCHS},
            {"cuda_missing", CLS2DET_CUDA_MISSING},
        };
      },
      "How this library was built.");
  m.def("cpu_capability", [] { return std::string(cls2det::simd_level_name()); }, "The instruction set in use.");
}
