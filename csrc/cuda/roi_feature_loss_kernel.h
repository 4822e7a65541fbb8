// The kernel of roi_feature_loss.
#pragma once

#include "cuda/feature_loss.h"

namespace cls2det {

template <typename S>
void roi_feature_loss_rows(const FeatureLoss<S>& args, cudaStream_t stream);

}  // namespace cls2det
