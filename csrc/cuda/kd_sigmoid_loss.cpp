// The host code of kd_sigmoid_loss on CUDA.
#include "cuda/kd_sigmoid_loss_kernel.h"
#include "cuda/logits_loss.h"

namespace cls2det {
namespace {

std::tuple<Tensor, Tensor> loss(const LogitsCall& call) {
  return logits_loss(call, [](const auto& args, cudaStream_t stream) { kd_sigmoid_rows(args, stream); });
}

}  // namespace
}  // namespace cls2det

STABLE_TORCH_LIBRARY_IMPL(CLS2DET_NAMESPACE, CLS2DET_KEY, m) {
  m.impl("kd_sigmoid_loss", TORCH_BOX(&cls2det::kd_sigmoid_loss<cls2det::loss>));
}
