// scale_rows: out[k, i] = grad_rows[k] * row_grads[k, i], the backward of every loss whose forward left its gradient behind.
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace cls2det {
namespace {

template <typename S, typename T>
__global__ void __launch_bounds__(kBlock) scale_rows_kernel(
    const T* grad_rows, int64_t grad_stride, const S* row_grads, int64_t count, int64_t width, S* out) {
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < count * width; i += int64_t(gridDim.x) * kBlock) {
    const T g = grad_rows[divide(i, width) * grad_stride];  // a row that nothing asks for stays 0, even if its gradient is NaN
    out[i] = static_cast<S>(g == T(0) ? T(0) : g * static_cast<T>(row_grads[i]));
  }
}

}  // namespace

template <typename S>
void multiply_rows(
    const Accumulate<S>* grad_rows, int64_t grad_stride, const S* row_grads, int64_t count, int64_t width, S* out,
    cudaStream_t stream) {
  if (count * width == 0) return;
  CLS2DET_LAUNCH(
      (scale_rows_kernel<S, Accumulate<S>>), grid_of(ceil_div(count * width, kBlock)), stream, grad_rows, grad_stride,
      row_grads, count, width, out);
}

#define INSTANTIATE(S) template void multiply_rows(const Accumulate<S>*, int64_t, const S*, int64_t, int64_t, S*, cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
