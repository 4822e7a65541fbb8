// KL of two softmax rows, with its gradient. Part of a body: see foreach_target.h.

template <typename T>
CLS2DET_HD T row_max(const T* p, int64_t n) {
  const T lowest = -std::numeric_limits<T>::infinity();
  Vec<T> most = Vec<T>{} + lowest;
  for_vectors<T>(n, [&](int64_t c, int64_t left) __attribute__((always_inline)) {
    const Vec<T> v = load_up_to(p + c, left, lowest);
    most = v > most ? v : most;
  });
  return max_lanes<T>(most);
}

// p = softmax(z * scale) and log_p, its logarithm.
template <typename T>
void softmax_row(const T* z, int64_t classes, T scale, T* p, T* log_p) {
  const T max = row_max(z, classes), lowest = -std::numeric_limits<T>::infinity();
  Vec<T> sums{};
  for_vectors<T>(classes, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
    const Vec<T> a = (load_up_to(z + c, n, lowest) - max) * scale, e = exp_nonpositive(a);
    sums += e;
    store_up_to(log_p + c, a, n);
    store_up_to(p + c, e, n);
  });
  const T sum = sum_lanes<T>(sums), norm = T(1) / sum, log_sum = std::log(sum);
  for (int64_t c = 0; c < classes; ++c) p[c] *= norm, log_p[c] -= log_sum;
}

// Returns sum_c p (log p - log q) with q = softmax(z * scale) over the classes and, where `background` is given, that one
// logit more. Leaves factor * (q - p) in grad, and factor * q of the background in grad_background, if grad is given.
template <typename T>
T kl_row(
    const T* z, const T* p, const T* log_p, int64_t classes, const T* background, T scale, T factor, T* grad,
    T* grad_background) {
  const T lowest = -std::numeric_limits<T>::infinity();
  T max = row_max(z, classes);
  if (background) max = *background > max ? *background : max;
  Vec<T> sums{}, cross{};
  for_vectors<T>(classes, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
    const Vec<T> a = (load_up_to(z + c, n, lowest) - max) * scale, e = exp_nonpositive(a);
    sums += e;
    cross += times<Vec<T>>(load_up_to(p + c, n, T(0)), load_up_to(log_p + c, n, T(0)) - a);
    if (grad) store_up_to(grad + c, e, n);
  });
  const T e_background = background ? std::exp((*background - max) * scale) : T(0);
  const T sum = sum_lanes<T>(sums) + e_background;
  if (grad) {
    const T norm = factor / sum;
    for_vectors<T>(classes, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
      const Vec<T> e = load_up_to(grad + c, n, T(0)), target = load_up_to(p + c, n, T(0));
      store_up_to(grad + c, Vec<T>(e * norm - target * factor), n);
    });
    if (background) *grad_background = e_background * norm;
  }
  return sum_lanes<T>(cross) + std::log(sum);  // p sums to 1
}
