// kd_softmax_loss on the CPU. Each matched teacher row is computed once. Each student row then takes a pass for the maximum,
// one for exponentials and loss, and one for the gradient.
#include "cpu/logits_loss.h"

namespace cls2det {
namespace {

constexpr int kSoftmaxPlanes = 2;  // of a teacher row: P^t and its logarithm

}  // namespace
}  // namespace cls2det

#define CLS2DET_BODY "cpu/kd_softmax_loss_body.h"
#include "cpu/foreach_target.h"

namespace cls2det {
namespace {

template <typename T>
std::tuple<Tensor, Tensor> run(const LogitsCall& call) {
  return logits_loss<T>(
      call, kSoftmaxPlanes,
      [](const LogitsArgs<T>& args, int64_t begin, int64_t end) { CLS2DET_CALL(kd_softmax_teachers<T>, args, begin, end); },
      [](const LogitsArgs<T>& args, int64_t begin, int64_t end) { CLS2DET_CALL(kd_softmax_rows<T>, args, begin, end); });
}

std::tuple<Tensor, Tensor> loss(const LogitsCall& call) {
  return call.student.scalar_type() == ScalarType::Double ? run<double>(call) : run<float>(call);
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_FRAGMENT(CLS2DET_NAMESPACE, m) {
  m.def(
      "kd_softmax_loss(Tensor student_logits, Tensor teacher_logits, Tensor matched_idxs, float temperature, "
      "int background, bool need_grad, float factor) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CPU, m) {
  m.impl("kd_softmax_loss", TORCH_BOX(&cls2det::kd_softmax_loss<cls2det::loss>));
}
