// matched_feature_loss, backward: the transpose of adaptive average pooling. (Forward: feature_loss with one shared table.)
//
//     grad[k, c, y, x] = grad_rows[k] sum over the bins (p, q) that cover (y, x):  pooled_grad[k, c, p, q] / |bin|
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "math/sampling.h"

namespace cls2det {
namespace {

// Bin p covers pixel y exactly when "bin" y of the opposite pooling covers p, so bin_begin and bin_end serve both ways.
template <typename S, typename T>
__global__ void __launch_bounds__(kBlock) unpool_kernel(
    const T* grad_rows, const T* pooled_grad, int64_t planes, int64_t channels, int height, int width, int out_h, int out_w,
    S* grad) {
  const int64_t area = int64_t(height) * width, total = planes * area;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < total; i += int64_t(gridDim.x) * kBlock) {
    const int64_t plane = divide(i, area), pixel = i - plane * area;
    const int y = int(divide(pixel, width)), x = int(pixel - int64_t(y) * width);
    const T* g = pooled_grad + plane * int64_t(out_h) * out_w;
    T sum = T(0);
    for (int p = bin_begin(y, out_h, height); p < bin_end(y, out_h, height); ++p) {
      const T rows = T(bin_end(p, height, out_h) - bin_begin(p, height, out_h));
      for (int q = bin_begin(x, out_w, width); q < bin_end(x, out_w, width); ++q) {
        const T columns = T(bin_end(q, width, out_w) - bin_begin(q, width, out_w));
        sum += g[int64_t(p) * out_w + q] / (rows * columns);
      }
    }
    grad[i] = static_cast<S>(grad_rows[divide(plane, channels)] * sum);
  }
}

}  // namespace

template <typename S>
void unpool_windows(
    const Accumulate<S>* grad_rows, const Accumulate<S>* pooled_grad, int64_t rows, int64_t channels, int height, int width,
    int out_h, int out_w, S* grad, cudaStream_t stream) {
  const int64_t planes = rows * channels;
  if (planes == 0) return;
  CLS2DET_LAUNCH(
      (unpool_kernel<S, Accumulate<S>>), grid_of(ceil_div(planes * height * width, kBlock)), stream, grad_rows, pooled_grad,
      planes, channels, height, width, out_h, out_w, grad);
}

#define INSTANTIATE(S)                         \
  template void unpool_windows(                \
      const Accumulate<S>*, const Accumulate<S>*, int64_t, int64_t, int, int, int, int, S*, cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
