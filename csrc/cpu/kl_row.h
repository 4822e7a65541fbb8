// KL of two softmax rows, with its gradient. Part of a body: see foreach_target.h.

// Returns sum_c P^t (log P^t - log P^s) with P^t = softmax(t * scale) over `classes` and P^s = softmax(s * scale) over the
// same classes and, where `background` is given, that one logit more. Leaves P^s - P^t in grad and P^s of the background in
// grad_background if grad is given. exps: scratch of 2 * classes.
template <typename T>
T kl_row(const T* s, const T* t, int64_t classes, const T* background, T scale, T* grad, T* grad_background, T* exps) {
  constexpr int lanes = kLanes<T>;
  const T lowest = -std::numeric_limits<T>::infinity();
  Vec<T> max_sv = Vec<T>{} + lowest, max_tv = max_sv;
  for (int64_t c = 0; c < classes; c += lanes) {
    const int n = int(classes - c < lanes ? classes - c : lanes);
    const Vec<T> sv = n == lanes ? load(s + c) : load_n(s + c, n, lowest);
    const Vec<T> tv = n == lanes ? load(t + c) : load_n(t + c, n, lowest);
    max_sv = sv > max_sv ? sv : max_sv;
    max_tv = tv > max_tv ? tv : max_tv;
  }
  const T max_t = max_lanes<T>(max_tv);
  T max_s = max_lanes<T>(max_sv);
  if (background) max_s = *background > max_s ? *background : max_s;

  T* exps_t = exps + classes;
  Vec<T> sum_sv{}, sum_tv{}, cross{};
  for (int64_t c = 0; c < classes; c += lanes) {
    const int n = int(classes - c < lanes ? classes - c : lanes);
    const Vec<T> sv = ((n == lanes ? load(s + c) : load_n(s + c, n, lowest)) - max_s) * scale;
    const Vec<T> tv = ((n == lanes ? load(t + c) : load_n(t + c, n, lowest)) - max_t) * scale;
    const Vec<T> es = exp_nonpositive(sv), et = exp_nonpositive(tv);
    sum_sv += es;
    sum_tv += et;
    cross += times<Vec<T>>(et, tv - sv);
    if (grad && n == lanes) {
      store(exps + c, es);
      store(exps_t + c, et);
    } else if (grad) {
      store_n(exps + c, es, n);
      store_n(exps_t + c, et, n);
    }
  }
  const T e_background = background ? std::exp((*background - max_s) * scale) : T(0);
  const T sum_s = sum_lanes<T>(sum_sv) + e_background, sum_t = sum_lanes<T>(sum_tv);
  if (grad) {
    const T norm_s = T(1) / sum_s, norm_t = T(1) / sum_t;
    for (int64_t c = 0; c < classes; c += lanes) {
      const int n = int(classes - c < lanes ? classes - c : lanes);
      if (n == lanes) {
        store(grad + c, Vec<T>(load(exps + c) * norm_s - load(exps_t + c) * norm_t));
      } else {
        store_n(grad + c, Vec<T>(load_n(exps + c, n, T(0)) * norm_s - load_n(exps_t + c, n, T(0)) * norm_t), n);
      }
    }
    if (background) *grad_background = e_background * norm_s;
  }
  return sum_lanes<T>(cross) / sum_t - std::log(sum_t) + std::log(sum_s);
}
