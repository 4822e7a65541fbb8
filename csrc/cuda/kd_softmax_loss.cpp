// The host code of kd_softmax_loss on CUDA.
#include "cuda/kd_softmax_loss_kernel.h"
#include "cuda/logits_loss.h"

namespace cls2det {
namespace {

std::tuple<Tensor, Tensor> loss(const LogitsCall& call) {
  return logits_loss(call, [](const auto& args, cudaStream_t stream) { kd_softmax_rows(args, stream); });
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CLS2DET_KEY, m) {
  m.impl("kd_softmax_loss", TORCH_BOX(&cls2det::kd_softmax_loss<cls2det::loss>));
}
