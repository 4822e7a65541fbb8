// The kernels of frozen_stem for a ResNet's kernel, with sums in float32.
#pragma once

#include "cuda/storage.h"
#include "math/stem_shape.h"

namespace cls2det {

bool is_resnet_stem(const StemShape& shape);
template <typename S>
void resnet_stem(
    const StemShape& shape, const S* images, const float* weight, const float* bias, S* out, uint8_t* index,
    cudaStream_t stream);
template <typename S>
void resnet_stem_backward(
    const StemShape& shape, const S* grad, const uint8_t* index, const float* weight, S* grad_images, cudaStream_t stream);

}  // namespace cls2det
