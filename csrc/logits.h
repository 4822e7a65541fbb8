// What kd_softmax_loss and kd_sigmoid_loss share on both back ends: their arguments and checks.
#pragma once

#include "checks.h"
#include "math/divergence.h"
#include "views.h"

namespace cls2det {

struct LogitsCall {
  Tensor student, teacher, matched;  // (K, columns), (G, classes), (K,)
  double temperature;
  Background background;
  SigmoidMode mode;  // of kd_sigmoid_loss
  bool need_grad;
  double factor;  // of the rows alone: a 16-bit gradient keeps its digits, and scale_rows gets the factor, too

  int64_t count() const { return student.size(0); }
  int64_t columns() const { return student.size(1); }
  int64_t classes() const { return teacher.size(1); }
};

inline void check(const LogitsCall& call) {
  check_dim("student_logits", call.student, 2);
  check_dim("teacher_logits", call.teacher, 2);
  check_floating("student_logits", call.student);
  check_dtype("teacher_logits", call.teacher, call.student.scalar_type());
  check_index("matched_idxs", call.matched, call.count());
  check_positive("temperature", call.temperature);
  check_size("student_logits", call.student, 1, call.classes() + (call.background != Background::none));
  check_together(call.student, {call.teacher, call.matched});
}

// The view of a call's tensors, which must be of storage type S; `grad` may be empty.
template <typename S>
LogitsView<S> logits_view(const LogitsCall& call, const Tensor& rows, const Tensor& grad) {
  LogitsView<S> view{};
  view.student = data<const S>(call.student);
  view.teacher = data<const S>(call.teacher);
  view.student_row = call.student.stride(0);
  view.student_column = call.student.stride(1);
  view.teacher_row = call.teacher.stride(0);
  view.teacher_column = call.teacher.stride(1);
  view.matched = data<const int64_t>(call.matched);
  view.count = call.count();
  view.teachers = call.teacher.size(0);
  view.classes = call.classes();
  view.columns = call.columns();
  view.temperature = Accumulate<S>(call.temperature);
  view.loss_scale = Accumulate<S>(call.factor * call.temperature * call.temperature);
  view.background = call.background;
  view.mode = call.mode;
  view.rows = data<Accumulate<S>>(rows);
  view.grad = call.need_grad ? data<S>(grad) : nullptr;
  return view;
}

// The operators with the arguments of their schemas. They check these and call Run, the implementation of one back end.
template <auto Run>
std::tuple<Tensor, Tensor> kd_softmax_loss(
    Tensor student, Tensor teacher, Tensor matched, double temperature, int64_t background, bool need_grad, double factor) {
  const Background column = to_option("background", background, Background::last);
  const LogitsCall call{student, teacher, matched, temperature, column, SigmoidMode::bce, need_grad, factor};
  check(call);
  return Run(call);
}

template <auto Run>
std::tuple<Tensor, Tensor> kd_sigmoid_loss(
    Tensor student, Tensor teacher, Tensor matched, double temperature, int64_t mode, int64_t background, bool need_grad,
    double factor) {
  const Background column = to_option("background", background, Background::last);
  const LogitsCall call{student,   teacher, matched, temperature, column, to_option("mode", mode, SigmoidMode::l1norm),
                        need_grad, factor};
  check(call);
  return Run(call);
}

}  // namespace cls2det
