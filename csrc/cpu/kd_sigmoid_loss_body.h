#include "cpu/kl_row.h"

template <typename T>
CLS2DET_HD Sigmoid<Vec<T>> sigmoid_vector(Vec<T> a) {
  const Vec<T> e = exp_nonpositive(minus_size<Vec<T>>(a));
  return sigmoid_of<Vec<T>>(a, e, log1p_unit(e));
}

// Teacher rows [begin, end). bce: S^t, 1 - S^t and their logarithms; l1norm: Q^t and its logarithm.
template <typename T>
void kd_sigmoid_teachers(const LogitsArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t classes = args.classes;
  const T scale = T(1) / args.temperature;
  std::vector<T> log_scores(classes);
  for (int64_t g = begin; g < end; ++g) {
    if (!args.used[g]) continue;
    T* soft = args.soft + g * kSigmoidPlanes * classes;
    for_vectors<T>(classes, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
      const auto s = sigmoid_vector<T>(load_up_to(args.teacher + g * args.teacher_row + c, n, T(0)) * scale);
      store_up_to(soft + c, s.on, n);
      store_up_to(soft + classes + c, s.off, n);
      store_up_to(soft + 2 * classes + c, s.log_on, n);
      store_up_to(soft + 3 * classes + c, s.log_off, n);
    });
    if (args.mode == SigmoidMode::l1norm) {
      std::memcpy(log_scores.data(), soft + 2 * classes, classes * sizeof(T));
      softmax_row(log_scores.data(), classes, T(1), soft, soft + classes);
    }
  }
}

// L = T^2 / C sum_c KL([S^t, 1 - S^t], [S^s, 1 - S^s]), dL/dz^s = T / C (S^s - S^t). Without the factor T^2 / C.
template <typename T>
T bce_row(const T* z, const T* soft, int64_t classes, T scale, T* grad, T grad_scale) {
  Vec<T> sum{};
  for_vectors<T>(classes, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
    // missing lanes: the teacher's shares are 0, no divergence
    const auto s = sigmoid_vector<T>(load_up_to(z + c, n, T(0)) * scale);
    Sigmoid<Vec<T>> t;
    t.on = load_up_to(soft + c, n, T(0));
    t.off = load_up_to(soft + classes + c, n, T(0));
    t.log_on = load_up_to(soft + 2 * classes + c, n, T(0));
    t.log_off = load_up_to(soft + 3 * classes + c, n, T(0));
    sum += two_way_kl(s, t);
    if (grad) store_up_to(grad + c, Vec<T>((s.on - t.on) * grad_scale), n);
  });
  return sum_lanes<T>(sum);
}

// L = T^2 KL(Q^t, Q^s), Q = S / sum S = softmax(log S), dL/dz^s = T (1 - S^s) (Q^s - Q^t). Without the factor T^2.
template <typename T>
T l1norm_row(const T* z, const T* soft, int64_t classes, T scale, T* grad, T grad_scale, T* scratch) {
  T *log_scores = scratch, *on = scratch + classes, *off = scratch + 2 * classes;
  Vec<T> sums{}, cross{};
  for_vectors<T>(classes, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
    // missing lanes: a score of 0, the teacher's share is 0
    const auto s = sigmoid_vector<T>(load_up_to(z + c, n, -std::numeric_limits<T>::infinity()) * scale);
    sums += s.on;
    cross += times<Vec<T>>(load_up_to(soft + c, n, T(0)), load_up_to(soft + classes + c, n, T(0)) - s.log_on);
    store_up_to(log_scores + c, s.log_on, n);
    store_up_to(on + c, s.on, n);
    store_up_to(off + c, s.off, n);
  });
  const T sum = sum_lanes<T>(sums);
  if (sum > T(1e-3) && classes > 1) {  // else logarithms are so large that their rounding shows, or NaN; one class: exactly 0
    for_vectors<T>(grad ? classes : 0, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
      const Vec<T> share = load_up_to(on + c, n, T(0)) / sum, target = load_up_to(soft + c, n, T(0));
      store_up_to(grad + c, Vec<T>((share - target) * load_up_to(off + c, n, T(0)) * grad_scale), n);
    });
    return sum_lanes<T>(cross) + std::log(sum);  // Q^t sums to 1
  }
  const T kl = kl_row<T>(log_scores, soft, soft + classes, classes, nullptr, T(1), grad_scale, grad, nullptr);
  if (grad) {
    for (int64_t c = 0; c < classes; ++c) grad[c] *= off[c];
  }
  return kl;
}

// Rows [begin, end) of kd_sigmoid_loss.
template <typename T>
void kd_sigmoid_rows(const LogitsArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t first = first_class_column(args.background);
  const T scale = T(1) / args.temperature;
  std::vector<T> scratch(args.mode == SigmoidMode::l1norm ? 3 * args.classes : 0);
  for (int64_t k = begin; k < end; ++k) {
    const int64_t match = args.matched[k];
    T* grad = args.grad ? args.grad + k * args.columns : nullptr;
    if (grad) std::memset(grad, 0, args.columns * sizeof(T));  // an unused column stays 0
    args.rows[k] = T(0);
    if (match < 0 || match >= args.teachers) continue;  // ignored
    const T* z = args.student + k * args.student_row + first;
    const T* soft = args.soft + match * kSigmoidPlanes * args.classes;
    if (grad) grad += first;
    if (args.mode == SigmoidMode::bce) {
      const T classes = T(args.classes);
      args.rows[k] = args.loss_scale / classes * bce_row<T>(z, soft, args.classes, scale, grad, args.temperature / classes);
    } else {
      args.rows[k] = args.loss_scale * l1norm_row<T>(z, soft, args.classes, scale, grad, args.temperature, scratch.data());
    }
  }
}
