// roi_feature_loss: see feature_loss.cuh. The gradient of the map is roi_map_gradient's.
#include "cuda/roi_feature_loss_kernel.h"

#include "cuda/feature_loss.cuh"

namespace cls2det {

template <typename S>
void roi_feature_loss_rows(const FeatureLoss<S>& args, cudaStream_t stream) {
  (args.edges ? launch_feature_loss<true, S> : launch_feature_loss<false, S>)(args, stream);
}

#define INSTANTIATE(S) template void roi_feature_loss_rows(const FeatureLoss<S>&, cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
