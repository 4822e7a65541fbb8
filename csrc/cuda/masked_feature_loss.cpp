// The host code of masked_feature_loss on CUDA.
#include "masked_feature_loss.h"

#include "cuda/masked_feature_loss_kernel.h"
#include "cuda/tensors.h"

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

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CLS2DET_KEY, m) {
  m.impl("masked_feature_loss", TORCH_BOX(&cls2det::masked_feature_loss));
  m.impl("masked_feature_loss_backward", TORCH_BOX(&cls2det::masked_feature_loss_backward));
}
