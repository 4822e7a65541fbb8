// scale_rows on the GPU: the backward of every loss whose forward left the gradient of its rows behind.
#include "cuda/kernels.h"

namespace cls2det {
namespace {

template <typename In, typename Out>
__global__ void scale_rows(
    const Accumulate<In>* upstream, int64_t upstream_stride, const In* row_grads, int64_t count, int64_t width, Out* out) {
  using A = Accumulate<In>;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count * width) return;
  out[i] = static_cast<Out>(upstream[i / width * upstream_stride] * static_cast<A>(row_grads[i]));
}

}  // namespace

template <typename In, typename Out>
void launch_scale_rows(
    const Accumulate<In>* upstream, int64_t upstream_stride, const In* row_grads, int64_t count, int64_t width, Out* out, cudaStream_t stream) {
  CLS2DET_LAUNCH(
      (scale_rows<In, Out>), blocks_for(count * width, kThreads), kThreads, 0, stream, upstream, upstream_stride, row_grads, count,
      width, out);
}

#define INSTANTIATE(S) \
  template void launch_scale_rows<S, S>(const Accumulate<S>*, int64_t, const S*, int64_t, int64_t, S*, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace cls2det
