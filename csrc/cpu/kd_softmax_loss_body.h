#include "cpu/kl_row.h"

// Rows [begin, end) of kd_softmax_loss: L = T^2 KL(P^t, P^s), dL/dz^s = T (P^s - P^t).
template <typename T>
void kd_softmax_rows(const LogitsArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t first = first_class_column(args.background), other = background_column(args.background, int(args.classes));
  std::vector<T> exps(args.grad ? 2 * args.classes : 0);
  for (int64_t k = begin; k < end; ++k) {
    const int64_t match = args.matched[k];
    T* grad = args.grad ? args.grad + k * args.columns : nullptr;
    if (match < 0 || match >= args.teachers) {  // ignored
      args.rows[k] = T(0);
      if (grad) std::memset(grad, 0, args.columns * sizeof(T));
      continue;
    }
    const T* s = args.student + k * args.student_stride;
    const T* t = args.teacher + match * args.teacher_stride;
    const T kl = kl_row<T>(s + first, t, args.classes, other < 0 ? nullptr : s + other, T(1) / args.temperature,
                           grad ? grad + first : nullptr, grad ? grad + other : nullptr, exps.data());
    args.rows[k] = args.temperature * args.temperature * kl;
    if (grad) {
      for (int64_t c = 0; c < args.columns; ++c) grad[c] *= args.temperature;
    }
  }
}
