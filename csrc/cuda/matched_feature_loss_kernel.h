// The kernels of matched_feature_loss.
#pragma once

#include "cuda/feature_loss.h"

namespace cls2det {

// The "boxes" are whole maps, with one table for all: args.edges must be false.
template <typename S>
void matched_feature_loss_rows(const FeatureLoss<S>& args, cudaStream_t stream);

// grad (K, C, height, width) = factor * grad_rows[k] * the transpose of adaptive average pooling of pooled_grad (K, C, bins).
template <typename S>
void unpool_windows(
    const Accumulate<S>* grad_rows, int64_t grad_stride, Accumulate<S> factor, const Accumulate<S>* pooled_grad, int64_t rows,
    int64_t channels, int height, int width, int out_h, int out_w, S* grad, cudaStream_t stream);

}  // namespace cls2det
