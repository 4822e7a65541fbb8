// kd_softmax_loss on the CPU: each matched teacher row once; then a pass for the maximum, one for exponentials and loss, one
// for the gradient of each student row.
#include "cpu/logits.h"

#define CLS2DET_BODY "cpu/kd_softmax_loss_body.h"
#include "cpu/foreach_target.h"

namespace cls2det {
namespace {

template <typename T>
std::tuple<Tensor, Tensor> run(
    const Tensor& student, const Tensor& teacher, const Tensor& matched, double temperature, int64_t background,
    bool need_grad) {
  return logits_loss<T>(
      student, teacher, matched, temperature, background, 0, 2, need_grad,
      [](const LogitsArgs<T>& args, int64_t begin, int64_t end) { CLS2DET_CALL(kd_softmax_teachers<T>, args, begin, end); },
      [](const LogitsArgs<T>& args, int64_t begin, int64_t end) { CLS2DET_CALL(kd_softmax_rows<T>, args, begin, end); });
}

std::tuple<Tensor, Tensor> kd_softmax_loss(
    Tensor student, Tensor teacher, Tensor matched, double temperature, int64_t background, bool need_grad) {
  return (student.scalar_type() == ScalarType::Double ? run<double> : run<float>)(student, teacher, matched, temperature,
                                                                                  background, need_grad);
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(cls2det, CPU, m) { m.impl("kd_softmax_loss", TORCH_BOX(&cls2det::kd_softmax_loss)); }
