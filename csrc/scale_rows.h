// What the two back ends of scale_rows share: its checks.
#pragma once

#include "checks.h"

namespace cls2det {

inline void check_scale_rows(const Tensor& grad_rows, const Tensor& row_grads, const Tensor& input) {
  check_floating("input", input);
  if (row_grads.dim() < 1) fail("row_grads must have rows");
  check_grad_rows(grad_rows, row_grads);
  check_together(input, {row_grads});
}

}  // namespace cls2det
