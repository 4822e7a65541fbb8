// masked_feature_loss on the CPU: one pass over both maps in the order in which they lie, forward and backward alike.
#include "masked_feature_loss.h"

#include "cpu/map_tiles.h"
#include "math/masked_square.h"

namespace cls2det {
namespace {

template <typename S>
struct MaskedArgs {
  using T = Accumulate<S>;
  MapTiles tiles;
  const S *student, *teacher;  // (images, outer, inner), images at these distances
  int64_t student_stride, teacher_stride;
  const T *outer_mask, *inner_mask;  // (images, outer), (images, inner), or null: 1
  T* partial = nullptr;              // forward: the sum of each tile
  const T* grad_rows = nullptr;      // backward: (images,), at this distance
  int64_t grad_rows_stride = 0;
  S *grad_student = nullptr, *grad_teacher = nullptr;  // dense, or null
  bool past_caches = false;                            // see MapTiles

  explicit MaskedArgs(const MaskedMaps& maps)
      : tiles(maps.student.shape, 16384),
        student(data<const S>(maps.student.map)),
        teacher(data<const S>(maps.teacher.map)),
        student_stride(maps.student.stride),
        teacher_stride(maps.teacher.stride),
        outer_mask(maps.outer_mask ? data<const T>(*maps.outer_mask) : nullptr),
        inner_mask(maps.inner_mask ? data<const T>(*maps.inner_mask) : nullptr) {}
};

}  // namespace
}  // namespace cls2det

#define CLS2DET_BODY "cpu/masked_feature_loss_body.h"
#include "cpu/foreach_target.h"

namespace cls2det {
namespace {

template <typename S>
Tensor forward(const MaskedMaps& maps) {
  using T = Accumulate<S>;
  MaskedArgs<S> args(maps);
  const int64_t images = args.tiles.shape.images, per_image = args.tiles.down * args.tiles.across;
  std::vector<T> partial(args.tiles.count());
  args.partial = partial.data();
  args.tiles.for_tiles([&](int64_t begin, int64_t end) { CLS2DET_CALL(masked_sums<S>, args, begin, end); });
  const Tensor rows = make(maps.student.map, {images}, accumulate_dtype(maps.student.map.scalar_type()));
  T* row = data<T>(rows);
  std::fill(row, row + images, T(0));
  for (int64_t i = 0; i < args.tiles.count(); ++i) row[i / per_image] += partial[i];
  return rows;
}

template <typename S>
void backward(const MaskedMaps& maps, const Tensor& grad_rows, const Tensor& grad_student, const Tensor& grad_teacher) {
  MaskedArgs<S> args(maps);
  args.grad_rows = data<const Accumulate<S>>(grad_rows);
  args.grad_rows_stride = grad_rows.stride(0);
  if (grad_student.dim() == 4) args.grad_student = data<S>(grad_student);  // else not needed
  if (grad_teacher.dim() == 4) args.grad_teacher = data<S>(grad_teacher);
  args.past_caches = args.tiles.past_caches(args.grad_student) && args.tiles.past_caches(args.grad_teacher);
  args.tiles.for_tiles([&](int64_t begin, int64_t end) { CLS2DET_CALL(masked_gradients<S>, args, begin, end); });
}

Tensor masked_feature_loss(Tensor student, Tensor teacher, std::optional<Tensor> mask, std::optional<Tensor> channel_mask) {
  check_masked_loss(student, teacher, mask, channel_mask);
  const MaskedMaps maps(student, teacher, mask, channel_mask);
  return for_storage(student.scalar_type(), [&](auto storage) { return forward<decltype(storage)>(maps); });
}

std::tuple<Tensor, Tensor> masked_feature_loss_backward(
    Tensor grad_rows, Tensor student, Tensor teacher, std::optional<Tensor> mask, std::optional<Tensor> channel_mask,
    bool need_student, bool need_teacher) {
  check_masked_loss(student, teacher, mask, channel_mask);
  check_grad_rows(grad_rows, student);
  const ScalarType dtype = student.scalar_type();
  const MaskedMaps maps(student, teacher, mask, channel_mask);
  const auto gradient = [&](bool needed) {
    return needed ? make_map(student, maps.channels_last, dtype) : make(student, {0}, dtype);
  };
  const Tensor grad_student = gradient(need_student), grad_teacher = gradient(need_teacher);
  const Tensor upstream = to_dtype(grad_rows, accumulate_dtype(dtype));
  for_storage(dtype, [&](auto storage) { backward<decltype(storage)>(maps, upstream, grad_student, grad_teacher); });
  return {grad_student, grad_teacher};
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_FRAGMENT(CLS2DET_NAMESPACE, m) {
  m.def("masked_feature_loss(Tensor student, Tensor teacher, Tensor? mask, Tensor? channel_mask) -> Tensor");
  m.def(
      "masked_feature_loss_backward(Tensor grad_rows, Tensor student, Tensor teacher, Tensor? mask, Tensor? channel_mask, "
      "bool need_student, bool need_teacher) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CPU, m) {
  m.impl("masked_feature_loss", TORCH_BOX(&cls2det::masked_feature_loss));
  m.impl("masked_feature_loss_backward", TORCH_BOX(&cls2det::masked_feature_loss_backward));
}
