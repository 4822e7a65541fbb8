#include "cpu/kl_row.h"

template <typename T>
CLS2DET_HD Sigmoid<Vec<T>> sigmoid_vector(Vec<T> a) {
  const Vec<T> e = exp_nonpositive(minus_size<Vec<T>>(a));
  return sigmoid_of<Vec<T>>(a, e, log1p_unit(e));
}

// L = T^2 / C sum_c KL([S^t, 1 - S^t], [S^s, 1 - S^s]), dL/dz^s = T / C (S^s - S^t). Without the factor T^2 / C.
template <typename T>
T bce_row(const T* s, const T* t, int64_t classes, T scale, T* grad, T grad_scale) {
  constexpr int lanes = kLanes<T>;
  Vec<T> sum{};
  for (int64_t c = 0; c < classes; c += lanes) {
    const int n = int(classes - c < lanes ? classes - c : lanes);  // missing lanes: both 0, no divergence
    const auto ps = sigmoid_vector<T>((n == lanes ? load(s + c) : load_n(s + c, n, T(0))) * scale);
    const auto pt = sigmoid_vector<T>((n == lanes ? load(t + c) : load_n(t + c, n, T(0))) * scale);
    sum += two_way_kl(ps, pt);
    if (grad) store_n(grad + c, Vec<T>((ps.on - pt.on) * grad_scale), n);
  }
  return sum_lanes<T>(sum);
}

// L = T^2 KL(Q^t, Q^s), Q = S / sum S = softmax(log S), dL/dz^s = T (1 - S^s) (Q^s - Q^t). Without the factor T^2.
template <typename T>
T l1norm_row(const T* s, const T* t, int64_t classes, T scale, T* grad, T grad_scale, T* scratch) {
  constexpr int lanes = kLanes<T>;
  T *log_s = scratch, *log_t = scratch + classes, *off = scratch + 2 * classes;
  for (int64_t c = 0; c < classes; c += lanes) {
    const int n = int(classes - c < lanes ? classes - c : lanes);
    const auto ps = sigmoid_vector<T>((n == lanes ? load(s + c) : load_n(s + c, n, T(0))) * scale);
    const auto pt = sigmoid_vector<T>((n == lanes ? load(t + c) : load_n(t + c, n, T(0))) * scale);
    store_n(log_s + c, ps.log_on, n);
    store_n(log_t + c, pt.log_on, n);
    store_n(off + c, ps.off, n);
  }
  const T kl = kl_row<T>(log_s, log_t, classes, nullptr, T(1), grad, nullptr, scratch + 3 * classes);
  if (grad) {
    for (int64_t c = 0; c < classes; ++c) grad[c] *= grad_scale * off[c];
  }
  return kl;
}

// Rows [begin, end) of kd_sigmoid_loss.
template <typename T>
void kd_sigmoid_rows(const LogitsArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t first = first_class_column(args.background);
  const T scale = T(1) / args.temperature, squared = args.temperature * args.temperature;
  std::vector<T> scratch(args.mode == kL1Norm ? 5 * args.classes : 0);
  for (int64_t k = begin; k < end; ++k) {
    const int64_t match = args.matched[k];
    T* grad = args.grad ? args.grad + k * args.columns : nullptr;
    if (grad) std::memset(grad, 0, args.columns * sizeof(T));  // an unused column stays 0
    args.rows[k] = T(0);
    if (match < 0 || match >= args.teachers) continue;  // ignored
    const T* s = args.student + k * args.student_stride + first;
    const T* t = args.teacher + match * args.teacher_stride;
    if (grad) grad += first;
    if (args.mode == kBce) {
      const T classes = T(args.classes);
      args.rows[k] = squared / classes * bce_row<T>(s, t, args.classes, scale, grad, args.temperature / classes);
    } else {
      args.rows[k] = squared * l1norm_row<T>(s, t, args.classes, scale, grad, args.temperature, scratch.data());
    }
  }
}
