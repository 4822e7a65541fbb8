#include "cpu/kl_row.h"

// Teacher rows [begin, end): P^t and its logarithm.
template <typename T>
void kd_softmax_teachers(const LogitsArgs<T>& args, int64_t begin, int64_t end) {
  for (int64_t g = begin; g < end; ++g) {
    T* soft = args.soft + g * kSoftmaxPlanes * args.classes;
    if (args.used[g])
      softmax_row(args.teacher + g * args.teacher_row, args.classes, T(1) / args.temperature, soft, soft + args.classes);
  }
}

// Rows [begin, end): L = T^2 KL(P^t, P^s), dL/dz^s = T (P^s - P^t).
template <typename T>
void kd_softmax_rows(const LogitsArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t first = first_class_column(args.background), background = background_column(args.background, args.classes);
  for (int64_t k = begin; k < end; ++k) {
    const int64_t match = args.matched[k];
    T* grad = args.grad ? args.grad + k * args.columns : nullptr;
    if (match < 0 || match >= args.teachers) {  // ignored
      args.rows[k] = T(0);
      if (grad) std::memset(grad, 0, args.columns * sizeof(T));
      continue;
    }
    const T* z = args.student + k * args.student_row;
    const T* soft = args.soft + match * kSoftmaxPlanes * args.classes;
    const T kl = kl_row<T>(
        z + first, soft, soft + args.classes, args.classes, background < 0 ? nullptr : z + background, T(1) / args.temperature,
        args.temperature, grad ? grad + first : nullptr, grad ? grad + background : nullptr);
    args.rows[k] = args.loss_scale * kl;
  }
}
