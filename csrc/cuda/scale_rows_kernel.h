// The kernel of scale_rows.
#pragma once

#include "cuda/storage.h"

namespace cls2det {

// out (count, width) = factor * grad_rows[k] * row_grads[k, i]; grad_rows lie grad_stride apart, which is 0 for those of a
// plain sum
template <typename S>
void multiply_rows(
    const Accumulate<S>* grad_rows, int64_t grad_stride, Accumulate<S> factor, const S* row_grads, int64_t count, int64_t width,
    S* out, cudaStream_t stream);

}  // namespace cls2det
