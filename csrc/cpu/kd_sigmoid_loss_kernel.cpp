// kd_sigmoid_loss on the CPU. Each matched teacher row is computed once. Each student row then takes one pass in mode bce, and
// in l1norm its log-sigmoids and a softmax.
#include "cpu/logits_loss.h"

namespace cls2det {
namespace {

constexpr int kSigmoidPlanes =
    4;  // of a teacher row: bce: S^t, 1 - S^t and their logarithms; l1norm: Q^t and its logarithm, the others unused

}  // namespace
}  // namespace cls2det

#define CLS2DET_BODY "cpu/kd_sigmoid_loss_body.h"
#include "cpu/foreach_target.h"

namespace cls2det {
namespace {

template <typename T>
std::tuple<Tensor, Tensor> run(const LogitsCall& call) {
  return logits_loss<T>(
      call, kSigmoidPlanes,
      [](const LogitsArgs<T>& args, int64_t begin, int64_t end) { CLS2DET_CALL(kd_sigmoid_teachers<T>, args, begin, end); },
      [](const LogitsArgs<T>& args, int64_t begin, int64_t end) { CLS2DET_CALL(kd_sigmoid_rows<T>, args, begin, end); });
}

std::tuple<Tensor, Tensor> loss(const LogitsCall& call) {
  return call.student.scalar_type() == ScalarType::Double ? run<double>(call) : run<float>(call);
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_FRAGMENT(CLS2DET_NAMESPACE, m) {
  m.def(
      "kd_sigmoid_loss(Tensor student_logits, Tensor teacher_logits, Tensor matched_idxs, float temperature, int mode, "
      "int background, bool need_grad, float factor) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CPU, m) {
  m.impl("kd_sigmoid_loss", TORCH_BOX(&cls2det::kd_sigmoid_loss<cls2det::loss>));
}
