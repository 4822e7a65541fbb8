// What kd_softmax_loss and kd_sigmoid_loss share: their arguments as plain pointers, and the run over teachers and rows.
// A teacher row serves many positives: its probabilities are computed once, for the rows that are matched at all.
#pragma once

#include <limits>
#include <vector>

#include "checks.h"
#include "math/divergence.h"

namespace cls2det {

template <typename T>
struct LogitsArgs {
  const T* student;        // (rows, columns), rows student_stride apart
  const T* teacher;        // (teachers, classes), rows teacher_stride apart
  const int64_t* matched;  // (rows,)
  int64_t student_stride, teacher_stride, columns, classes, teachers;
  T temperature;
  int background, mode;
  const char* used;  // (teachers,) whether any row is matched to it
  T* soft;           // (teachers, planes, classes) what the rows need of a teacher; the operator says which planes
  T* rows;           // (rows,)
  T* grad;           // (rows, columns) d row / d student, or null
};

// A matrix whose rows may lie anywhere but whose columns are neighbours.
inline Tensor with_unit_columns(const Tensor& matrix) {
  return matrix.size(1) > 1 && matrix.stride(1) != 1 ? packed(matrix) : matrix;
}

// teachers(args, begin, end) fills `soft`, then rows(args, begin, end) the results, both in parallel; returns (rows, grad).
// 16-bit logits are computed in float32.
template <typename T, typename Teachers, typename Rows>
std::tuple<Tensor, Tensor> logits_loss(
    const Tensor& student_logits, const Tensor& teacher_logits, const Tensor& matched_idxs, double temperature,
    int64_t background, int64_t mode, int64_t planes, bool need_grad, const Teachers& teachers, const Rows& run) {
  const int64_t classes = check_logits(student_logits, teacher_logits, matched_idxs, temperature, background);
  const ScalarType dtype = student_logits.scalar_type(), acc = accumulate_dtype(dtype);
  const Tensor student = with_unit_columns(to_dtype(student_logits, acc));
  const Tensor teacher = with_unit_columns(to_dtype(teacher_logits, acc));
  const Tensor matched = packed(matched_idxs);
  const int64_t count = student.size(0), columns = student.size(1);
  Tensor rows = make(student, {count}, acc);
  Tensor grad = make(student, need_grad ? Shape{count, columns} : Shape{0}, acc);
  const Tensor soft = make(teacher, {teacher.size(0), planes, classes}, acc);
  std::vector<char> used(teacher.size(0), 0);
  for (int64_t k = 0; k < count; ++k) {
    const int64_t match = static_cast<const int64_t*>(matched.data_ptr())[k];
    if (match >= 0 && match < teacher.size(0)) used[match] = 1;
  }
  const LogitsArgs<T> args{
      static_cast<const T*>(student.data_ptr()),
      static_cast<const T*>(teacher.data_ptr()),
      static_cast<const int64_t*>(matched.data_ptr()),
      student.stride(0),
      teacher.stride(0),
      columns,
      classes,
      teacher.size(0),
      T(temperature),
      int(background),
      int(mode),
      used.data(),
      static_cast<T*>(soft.data_ptr()),
      static_cast<T*>(rows.data_ptr()),
      need_grad ? static_cast<T*>(grad.data_ptr()) : nullptr,
  };
  const int64_t grain = 1 + 16384 / (columns + 1);  // rows per thread that are worth waking it
  torch::stable::parallel_for(0, teacher.size(0), grain, [&](int64_t begin, int64_t end) { teachers(args, begin, end); });
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { run(args, begin, end); });
  return {rows, need_grad ? to_dtype(grad, dtype) : make(student, {0}, dtype)};
}

}  // namespace cls2det
