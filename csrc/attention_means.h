// What the two back ends of attention_means share: its checks.
#pragma once

#include "checks.h"
#include "dense_map.h"

namespace cls2det {

inline void check_attention_means_backward(const Tensor& grad_spatial, const Tensor& grad_channel, const Tensor& features) {
  check_map("features", features);
  check_dim("grad_spatial", grad_spatial, 3);
  check_dim("grad_channel", grad_channel, 2);
  for (int64_t d : {0, 1, 2}) check_size("grad_spatial", grad_spatial, d, features.size(d == 0 ? 0 : d + 1));
  for (int64_t d : {0, 1}) check_size("grad_channel", grad_channel, d, features.size(d));
  check_together(features, {grad_spatial, grad_channel});
}

}  // namespace cls2det
