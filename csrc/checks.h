// Last line of defence of the raw operators. The public Python functions check first, with better messages.
#pragma once

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "compat.h"
#include "math/iou.h"
#include "math/stem_shape.h"

namespace cls2det {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message << "cls2det: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline void check_dim(const char* name, const Tensor& tensor, int64_t dim) {
  if (tensor.dim() != dim) fail(name, " must have ", dim, " dimensions, found ", tensor.dim());
}

inline void check_size(const char* name, const Tensor& tensor, int64_t dim, int64_t size) {
  if (tensor.size(dim) != size) fail(name, " must be of size ", size, " in dimension ", dim, ", found ", tensor.size(dim));
}

inline void check_dtype(const char* name, const Tensor& tensor, ScalarType dtype) {
  if (tensor.scalar_type() != dtype) {
    fail(name, " must have dtype ", toString(dtype), ", found ", toString(tensor.scalar_type()));
  }
}

inline void check_floating(const char* name, const Tensor& tensor) {
  const ScalarType t = tensor.scalar_type();
  if (t != ScalarType::Float && t != ScalarType::Double && t != ScalarType::Half && t != ScalarType::BFloat16) {
    fail(name, " must be float32, float64, float16 or bfloat16, found ", toString(t));
  }
}

inline void check_index(const char* name, const Tensor& tensor, int64_t length) {
  check_dim(name, tensor, 1);
  check_size(name, tensor, 0, length);
  check_dtype(name, tensor, ScalarType::Long);
}

inline void check_map(const char* name, const Tensor& map) {
  check_dim(name, map, 4);
  check_floating(name, map);
  if (map.size(2) < 1 || map.size(3) < 1) fail(name, " must be of at least one pixel");
  if (map.size(2) > INT32_MAX / 4 || map.size(3) > INT32_MAX / 4) fail(name, " is too large along one axis");
}

inline void check_boxes(const char* name, const Tensor& boxes, const Tensor& map) {
  check_dim(name, boxes, 2);
  check_size(name, boxes, 1, 4);
  check_dtype(name, boxes, accumulate_dtype(map.scalar_type()));
}

inline void check_positive(const char* name, double value) {
  if (!(value > 0)) fail(name, " must be positive, found ", value);
}

inline void check_sizes(int64_t out_h, int64_t out_w, int64_t samples_h, int64_t samples_w) {
  const int64_t limit = 4096;  // keeps every product of two sizes well inside an int
  if (out_h < 1 || out_w < 1 || samples_h < 1 || samples_w < 1) fail("output and sampling sizes must be positive");
  if (out_h > limit || out_w > limit || samples_h > limit || samples_w > limit) fail("output and sampling sizes are too large");
}

inline void check_together(const Tensor& first, std::initializer_list<Tensor> others) {
  for (const Tensor& other : others) {
    if (other.is_cuda() != first.is_cuda() || other.get_device_index() != first.get_device_index()) {
      fail("all tensors must be on one device");
    }
  }
}

// One function per operator, for both back ends.

inline void check_roi(const Tensor& map, const Tensor& boxes, const Tensor& image_index) {
  check_map("features", map);
  check_boxes("boxes", boxes, map);
  check_index("image_index", image_index, boxes.size(0));
  check_together(map, {boxes, image_index});
}

inline void check_roi_grad(const Tensor& grad, const Tensor& map, const Tensor& boxes) {
  check_dim("grad", grad, 4);
  check_size("grad", grad, 0, boxes.size(0));
  check_size("grad", grad, 1, map.size(1));
  check_together(map, {grad});
}

inline void check_grad_rows(const Tensor& grad_rows, const Tensor& rows) {
  check_dim("grad_rows", grad_rows, 1);
  check_size("grad_rows", grad_rows, 0, rows.size(0));
  check_together(rows, {grad_rows});
}

inline void check_distance(int64_t loss, double beta) {
  check_positive("beta", beta);
  if (loss < 0 || loss > 2) fail("loss must be 0, 1 or 2, found ", loss);
}

inline void check_feature_loss(
    const Tensor& features, const Tensor& boxes, const Tensor& image_index, const Tensor& target_features,
    const Tensor& target_boxes, const Tensor& target_image_index, const Tensor& matched_idxs, double spatial_scale,
    double target_spatial_scale, int64_t loss, double beta) {
  check_roi(features, boxes, image_index);
  check_roi(target_features, target_boxes, target_image_index);
  check_dtype("target_features", target_features, features.scalar_type());
  check_size("target_features", target_features, 1, features.size(1));
  check_index("matched_idxs", matched_idxs, boxes.size(0));
  check_together(features, {target_features, matched_idxs});
  check_positive("spatial_scale", spatial_scale);
  check_positive("target_spatial_scale", target_spatial_scale);
  check_distance(loss, beta);
}

inline void check_matched_loss(
    const Tensor& features, const Tensor& target_features, const Tensor& matched_idxs, int64_t out_h, int64_t out_w,
    int64_t loss, double beta) {
  check_map("features", features);
  check_map("target_features", target_features);
  check_dtype("target_features", target_features, features.scalar_type());
  for (int64_t d = 1; d < 4; ++d) check_size("target_features", target_features, d, features.size(d));
  check_index("matched_idxs", matched_idxs, features.size(0));
  check_together(features, {target_features, matched_idxs});
  check_sizes(out_h, out_w, 1, 1);
  check_distance(loss, beta);
}

inline void check_matched_loss_backward(const Tensor& grad_rows, const Tensor& pooled_grad, const Tensor& features) {
  check_map("features", features);
  check_grad_rows(grad_rows, features);
  check_dim("pooled_grad", pooled_grad, 4);
  for (int64_t d = 0; d < 2; ++d) check_size("pooled_grad", pooled_grad, d, features.size(d));
  check_sizes(pooled_grad.size(2), pooled_grad.size(3), 1, 1);
  check_together(features, {pooled_grad});
}

inline void check_masked_loss(
    const Tensor& student, const Tensor& teacher, const std::optional<Tensor>& mask,
    const std::optional<Tensor>& channel_mask) {
  check_map("student", student);
  check_map("teacher", teacher);
  check_dtype("teacher", teacher, student.scalar_type());
  for (int64_t d = 0; d < 4; ++d) check_size("teacher", teacher, d, student.size(d));
  check_together(student, {teacher});
  if (mask) {
    check_floating("mask", *mask);
    check_dim("mask", *mask, 3);
    for (int64_t d : {0, 1, 2}) check_size("mask", *mask, d, student.size(d == 0 ? 0 : d + 1));
    check_together(student, {*mask});
  }
  if (channel_mask) {
    check_floating("channel_mask", *channel_mask);
    check_dim("channel_mask", *channel_mask, 2);
    for (int64_t d : {0, 1}) check_size("channel_mask", *channel_mask, d, student.size(d));
    check_together(student, {*channel_mask});
  }
}

inline void check_attention_backward(const Tensor& grad_spatial, const Tensor& grad_channel, const Tensor& features) {
  check_map("features", features);
  check_dim("grad_spatial", grad_spatial, 3);
  check_dim("grad_channel", grad_channel, 2);
  for (int64_t d : {0, 1, 2}) check_size("grad_spatial", grad_spatial, d, features.size(d == 0 ? 0 : d + 1));
  for (int64_t d : {0, 1}) check_size("grad_channel", grad_channel, d, features.size(d));
  check_together(features, {grad_spatial, grad_channel});
}

inline void check_imitation(
    const Tensor& anchors, const Tensor& boxes, const Tensor& image_index, int64_t images, const Shape& level_sizes,
    double factor, int64_t assignment) {
  check_boxes("anchors", anchors, anchors);
  check_boxes("boxes", boxes, anchors);
  check_index("image_index", image_index, boxes.size(0));
  check_together(anchors, {boxes, image_index});
  if (images < 0) fail("images must not be negative, found ", images);
  if (level_sizes.empty() || level_sizes.size() > size_t(kMostLevels))
    fail("level_sizes must be 1 to ", kMostLevels, " numbers");
  int64_t left = anchors.size(0);
  for (int64_t size : level_sizes) {
    if (size < 0 || size > left) fail("level_sizes must sum up to the number of anchors");
    left -= size;
  }
  if (left != 0) fail("level_sizes must sum up to the number of anchors");
  check_positive("factor", factor);
  if (assignment < 0 || assignment > 2) fail("assignment must be 0, 1 or 2, found ", assignment);
}

// Every place of the convolution sees at least one pixel, and none is left out of the limits of the kernels.
inline void check_stem_sizes(const Tensor& weight, int64_t height, int64_t width, int64_t stride, int64_t padding) {
  check_dim("weight", weight, 4);
  check_floating("weight", weight);
  const int64_t kernel_h = weight.size(2), kernel_w = weight.size(3), smaller = kernel_h < kernel_w ? kernel_h : kernel_w;
  if (smaller < 1 || kernel_h > kMostKernel || kernel_w > kMostKernel) fail("weight must have a kernel of 1 to ", kMostKernel);
  if (stride < 1 || stride > kMostKernel) fail("stride must be 1 to ", kMostKernel, ", found ", stride);
  if (padding < 0 || padding >= smaller) fail("padding must be 0 or more and less than the kernel, found ", padding);
  if (height + 2 * padding < kernel_h || width + 2 * padding < kernel_w) fail("images must be at least as large as the kernel");
}

inline void check_stem(const Tensor& images, const Tensor& weight, const Tensor& bias, int64_t stride, int64_t padding) {
  check_map("images", images);
  check_stem_sizes(weight, images.size(2), images.size(3), stride, padding);
  check_size("weight", weight, 1, images.size(1));
  check_dtype("weight", weight, images.scalar_type());
  check_dim("bias", bias, 1);
  check_size("bias", bias, 0, weight.size(0));
  check_dtype("bias", bias, images.scalar_type());
  check_together(images, {weight, bias});
}

inline void check_stem_backward(
    const Tensor& grad, const Tensor& index, const Tensor& weight, int64_t height, int64_t width, int64_t stride,
    int64_t padding) {
  check_map("grad", grad);
  check_stem_sizes(weight, height, width, stride, padding);
  check_size("grad", grad, 1, weight.size(0));
  check_dim("index", index, 4);
  check_dtype("index", index, ScalarType::Byte);
  for (int64_t d = 0; d < 4; ++d) check_size("index", index, d, grad.size(d));
  const int64_t sides[] = {height, width};
  for (int64_t d : {2, 3}) {
    check_size("grad", grad, d, (sides[d - 2] + 2 * padding - weight.size(d)) / stride / 2 + 1);
  }
  check_together(grad, {index, weight});
}

inline void check_scale_rows(const Tensor& grad_rows, const Tensor& row_grads, const Tensor& input) {
  check_floating("input", input);
  if (row_grads.dim() < 1) fail("row_grads must have rows");
  check_grad_rows(grad_rows, row_grads);
  check_together(input, {row_grads});
}

// Both logits losses; returns the number of classes.
inline int64_t check_logits(
    const Tensor& student, const Tensor& teacher, const Tensor& matched, double temperature, int64_t background) {
  check_dim("student_logits", student, 2);
  check_dim("teacher_logits", teacher, 2);
  check_floating("student_logits", student);
  check_dtype("teacher_logits", teacher, student.scalar_type());
  check_index("matched_idxs", matched, student.size(0));
  check_positive("temperature", temperature);
  if (background < 0 || background > 2) fail("background must be 0, 1 or 2, found ", background);
  check_size("student_logits", student, 1, teacher.size(1) + (background != 0));
  check_together(student, {teacher, matched});
  return teacher.size(1);
}

}  // namespace cls2det
