// What the two back ends of matched_feature_loss share: its arguments and checks.
#pragma once

#include "checks.h"

namespace cls2det {

struct MatchedLossCall {
  Tensor features, target_features, matched_idxs;  // (K, C, height, width), (G, C, height, width), (K,)
  int64_t out_h, out_w;
  Distance loss;
  double beta;
  bool need_grad;
  double factor;  // of the rows, not of the gradient that the forward leaves behind: the backward gets it, too

  int64_t count() const { return features.size(0); }
  int64_t channels() const { return features.size(1); }
  int64_t targets() const { return target_features.size(0); }
};

inline void check(const MatchedLossCall& call) {
  check_map("features", call.features);
  check_map("target_features", call.target_features);
  check_dtype("target_features", call.target_features, call.features.scalar_type());
  for (int64_t d = 1; d < 4; ++d) check_size("target_features", call.target_features, d, call.features.size(d));
  check_index("matched_idxs", call.matched_idxs, call.count());
  check_together(call.features, {call.target_features, call.matched_idxs});
  check_sizes(call.out_h, call.out_w, 1, 1);
  check_positive("beta", call.beta);
}

inline void check_matched_loss_backward(const Tensor& grad_rows, const Tensor& pooled_grad, const Tensor& features) {
  check_map("features", features);
  check_grad_rows(grad_rows, features);
  check_dim("pooled_grad", pooled_grad, 4);
  for (int64_t d = 0; d < 2; ++d) check_size("pooled_grad", pooled_grad, d, features.size(d));
  check_sizes(pooled_grad.size(2), pooled_grad.size(3), 1, 1);
  check_together(features, {pooled_grad});
}

// The operators with the arguments of their schemas. They check these and call Run, the implementation of one back end.
template <auto Run>
std::tuple<Tensor, Tensor> matched_feature_loss(
    Tensor features, Tensor target_features, Tensor matched_idxs, int64_t out_h, int64_t out_w, int64_t loss, double beta,
    bool need_grad, double factor) {
  const MatchedLossCall call{features, target_features, matched_idxs, out_h, out_w, to_distance(loss), beta, need_grad, factor};
  check(call);
  return Run(call);
}

template <auto Run>
Tensor matched_feature_loss_backward(Tensor grad_rows, Tensor pooled_grad, Tensor features, double factor) {
  check_matched_loss_backward(grad_rows, pooled_grad, features);
  return Run(grad_rows, pooled_grad, features, factor);
}

}  // namespace cls2det
