// The kernels of frozen_stem.
#pragma once

#include "cuda/storage.h"
#include "math/stem_shape.h"

namespace cls2det {

// out, index (images, channels, out_h, out_w) of images (images, inputs, height, width): ReLU and max-pool of their
// convolution, and the chosen place in each window, or null. weight (channels, inputs, kernel), bias (channels,).
template <typename S>
void stem(
    const StemShape& shape, const S* images, const Accumulate<S>* weight, const Accumulate<S>* bias, S* out, uint8_t* index,
    cudaStream_t stream);

// grad_images of grad (images, channels, out_h, out_w).
template <typename S>
void stem_backward(
    const StemShape& shape, const S* grad, const uint8_t* index, const Accumulate<S>* weight, S* grad_images,
    cudaStream_t stream);

}  // namespace cls2det
