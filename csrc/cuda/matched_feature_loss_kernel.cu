// matched_feature_loss. Forward: see feature_loss.cuh. Backward: the transpose of adaptive average pooling,
//
//     grad[k, c, y, x] = grad_rows[k] sum over the bins (p, q) that cover (y, x):  pooled_grad[k, c, p, q] / |bin|
#include "cuda/matched_feature_loss_kernel.h"

#include "cuda/feature_loss.cuh"
#include "math/sampling.h"

namespace cls2det {
namespace {

constexpr int kThreadPlanes = 16;  // of one thread, which finds the bins of its pixel once for all of them

// 1 / |bin p| along one axis of `size` pixels
template <typename T>
__device__ __forceinline__ T bin_share(int p, int size, int bins) {
  return T(1) / T(bin_end(p, size, bins) - bin_begin(p, size, bins));
}

// Bin p covers pixel y exactly when, in a pooling of the bins into the pixels, y covers p: bin_begin and bin_end with sizes
// exchanged give the bins of a pixel. Along an axis these are one or two, unless there are more bins than pixels.
template <typename S, typename T>
__global__ void __launch_bounds__(kBlock) unpool_kernel(
    const T* grad_rows, int64_t grad_stride, T factor, const T* pooled_grad, int64_t planes, int64_t channels, int height,
    int width, int out_h, int out_w, S* grad) {
  const int64_t area = int64_t(height) * width, total = (planes + kThreadPlanes - 1) / kThreadPlanes * area;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < total; i += int64_t(gridDim.x) * kBlock) {
    const int64_t chunk = divide(i, area), pixel = i - chunk * area, first = chunk * kThreadPlanes;
    const int64_t past = first + kThreadPlanes < planes ? first + kThreadPlanes : planes;
    const int y = int(divide(pixel, width)), x = int(pixel - int64_t(y) * width);
    const int p0 = bin_begin(y, out_h, height), p1 = bin_end(y, out_h, height);
    const int q0 = bin_begin(x, out_w, width), q1 = bin_end(x, out_w, width);
    const bool few = p1 - p0 <= 2 && q1 - q0 <= 2;
    T shares[2][2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const bool covers = few && p0 + r < p1 && q0 + s < q1;
        shares[r][s] = covers ? bin_share<T>(p0 + r, height, out_h) * bin_share<T>(q0 + s, width, out_w) : T(0);
      }
    }
    int64_t row = divide(first, channels), channel = first - row * channels;
    for (int64_t plane = first; plane < past; ++plane) {
      const T* g = pooled_grad + plane * int64_t(out_h) * out_w;
      T sum = T(0);
      if (few) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            if (shares[r][s] != T(0)) sum += shares[r][s] * g[int64_t(p0 + r) * out_w + q0 + s];
          }
        }
      } else {
        for (int p = p0; p < p1; ++p) {
          for (int q = q0; q < q1; ++q) {
            sum += bin_share<T>(p, height, out_h) * bin_share<T>(q, width, out_w) * g[int64_t(p) * out_w + q];
          }
        }
      }
      grad[plane * area + pixel] = static_cast<S>(factor * grad_rows[row * grad_stride] * sum);
      if (++channel == channels) channel = 0, ++row;
    }
  }
}

}  // namespace

template <typename S>
void matched_feature_loss_rows(const FeatureLoss<S>& args, cudaStream_t stream) {
  launch_feature_loss<false>(args, stream);
}

template <typename S>
void unpool_windows(
    const Accumulate<S>* grad_rows, int64_t grad_stride, Accumulate<S> factor, const Accumulate<S>* pooled_grad, int64_t rows,
    int64_t channels, int height, int width, int out_h, int out_w, S* grad, cudaStream_t stream) {
  const int64_t planes = rows * channels;
  if (planes == 0) return;
  CLS2DET_LAUNCH(
      (unpool_kernel<S, Accumulate<S>>), grid_of(ceil_div(ceil_div(planes, kThreadPlanes) * height * width, kBlock)), stream,
      grad_rows, grad_stride, factor, pooled_grad, planes, channels, height, width, out_h, out_w, grad);
}

#define INSTANTIATE(S)                                                                                              \
  template void matched_feature_loss_rows(const FeatureLoss<S>&, cudaStream_t);                                     \
  template void unpool_windows(                                                                                     \
      const Accumulate<S>*, int64_t, Accumulate<S>, const Accumulate<S>*, int64_t, int64_t, int, int, int, int, S*, \
      cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
