// What the two back ends of masked_feature_loss share: its checks, and its inputs in one order.
#pragma once

#include <optional>

#include "checks.h"
#include "dense_map.h"

namespace cls2det {

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

// The inputs of masked_feature_loss in one order, the student's. Masks are of accumulate dtype.
struct MaskedMaps {
  bool channels_last;
  DenseMap student, teacher;
  std::optional<Tensor> outer_mask, inner_mask;  // (images, outer), (images, inner)

  MaskedMaps(const Tensor& s, const Tensor& t, const std::optional<Tensor>& mask, const std::optional<Tensor>& channel_mask)
      : channels_last(is_channels_last(s)), student(s, channels_last), teacher(t, channels_last) {
    const ScalarType acc = accumulate_dtype(s.scalar_type());
    if (mask) (channels_last ? outer_mask : inner_mask) = packed(*mask, acc);
    if (channel_mask) (channels_last ? inner_mask : outer_mask) = packed(*channel_mask, acc);
  }
};

}  // namespace cls2det
