// The run of a logits loss on the CPU. A teacher row serves many rows of the student, so what they need of it is computed once,
// and only for teacher rows that some row is matched to.
#pragma once

#include <limits>
#include <vector>

#include "logits.h"

namespace cls2det {

template <typename T>
struct LogitsArgs : LogitsView<T> {  // columns are neighbours
  const char* used;                  // (teachers,) whether any row is matched to it
  T* soft;  // (teachers, planes, classes) what the rows need of a teacher; each loss has its own planes
};

// A matrix whose rows may lie anywhere but whose columns are neighbours.
inline Tensor with_unit_columns(const Tensor& matrix) {
  return matrix.size(1) > 1 && matrix.stride(1) != 1 ? packed(matrix) : matrix;
}

// run_teachers(args, begin, end) fills `planes` of `soft`, then run_rows(args, begin, end) the results, both in parallel;
// returns (rows, grad). 16-bit logits are computed in float32.
template <typename T, typename RunTeachers, typename RunRows>
std::tuple<Tensor, Tensor> logits_loss(
    LogitsCall call, int64_t planes, const RunTeachers& run_teachers, const RunRows& run_rows) {
  const ScalarType dtype = call.student.scalar_type(), acc = accumulate_dtype(dtype);
  call.student = with_unit_columns(to_dtype(call.student, acc));
  call.teacher = with_unit_columns(to_dtype(call.teacher, acc));
  call.matched = packed(call.matched);
  const int64_t count = call.count(), columns = call.columns(), teachers = call.teacher.size(0);
  Tensor rows = make(call.student, {count}, acc);
  Tensor grad = make(call.student, call.need_grad ? Shape{count, columns} : Shape{0}, acc);
  const Tensor soft = make(call.teacher, {teachers, planes, call.classes()}, acc);
  std::vector<char> used(teachers, 0);
  LogitsArgs<T> args{logits_view<T>(call, rows, grad), used.data(), data<T>(soft)};
  for (int64_t k = 0; k < count; ++k) {
    if (args.matched[k] >= 0 && args.matched[k] < teachers) used[args.matched[k]] = 1;
  }
  const int64_t grain = 1 + 16384 / (columns + 1);  // rows per thread that are worth waking it
  torch::stable::parallel_for(0, teachers, grain, [&](int64_t begin, int64_t end) { run_teachers(args, begin, end); });
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { run_rows(args, begin, end); });
  return {rows, call.need_grad ? to_dtype(grad, dtype) : make(call.student, {0}, dtype)};
}

}  // namespace cls2det
