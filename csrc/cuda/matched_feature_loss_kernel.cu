// matched_feature_loss. Forward: see feature_loss.cuh. Backward: the transpose of adaptive average pooling,
//
//     grad[k, c, y, x] = grad_rows[k] sum over the bins (p, q) that cover (y, x):  pooled_grad[k, c, p, q] / |bin|
#include "cuda/matched_feature_loss_kernel.h"

#include "cuda/feature_loss.cuh"
#include "cuda/map_walk.cuh"
#include "math/sampling.h"

namespace cls2det {
namespace {

constexpr int kPlaneValues = 2048;  // pooled, of the planes of a block, that fit in shared memory
constexpr int kAxis = 128;          // pixels along an axis that fit
constexpr int kBlockPlanes = 32;    // of one block, or as many as fit
constexpr int kThreadPlanes = 4;    // of one thread, which looks up the bins of its pixels once for all of them

// 1 / |bin p| along one axis of `size` pixels
template <typename T>
__device__ __forceinline__ T bin_share(int p, int size, int bins) {
  return T(1) / T(bin_end(p, size, bins) - bin_begin(p, size, bins));
}

// The bins that cover a pixel along one axis, and their shares. Bin p covers pixel y exactly when, in a pooling of the bins
// into the pixels, y covers p: bin_begin and bin_end with sizes exchanged give the bins of a pixel. These are one or two,
// unless there are more bins than pixels. Where there is only one it stands twice, with half of its share, so that nobody has
// to ask.
template <typename T>
struct Cover {
  int first, second;
  T first_share, second_share;

  Cover() = default;
  __device__ __forceinline__ Cover(int pixel, int size, int bins)
      : first(bin_begin(pixel, bins, size)), second(bin_end(pixel, bins, size) - 1) {
    const T part = first == second ? T(0.5) : T(1);
    first_share = part * bin_share<T>(first, size, bins);
    second_share = part * bin_share<T>(second, size, bins);
  }
};

// Divisions cost more than all else here, so a block finds the bins of rows and columns once, in shared memory.
template <int kRun, typename S, typename T>
__global__ void __launch_bounds__(kBlock) unpool_kernel(
    const T* grad_rows, int64_t grad_stride, T factor, const T* pooled_grad, int64_t planes, int64_t channels, int height,
    int width, int out_h, int out_w, int block_planes, S* grad) {
  CLS2DET_SHARED(T, pooled, kPlaneValues);      // (block_planes, bins), times the gradient of the row
  CLS2DET_SHARED(Cover<T>, covers, 2 * kAxis);  // of rows, then of columns
  const int bins = out_h * out_w, runs = height * width / kRun;
  for (int i = threadIdx.x; i < height + width; i += kBlock) {
    const bool of_row = i < height;
    covers[i] = Cover<T>(of_row ? i : i - height, of_row ? height : width, of_row ? out_h : out_w);
  }
  for (int64_t first = int64_t(blockIdx.x) * block_planes; first < planes; first += int64_t(gridDim.x) * block_planes) {
    const int count = planes - first < block_planes ? int(planes - first) : block_planes;
    __syncthreads();  // before the pooled values are overwritten
    for (int i = threadIdx.x; i < count * bins; i += kBlock) {
      const int64_t row = divide(first + int(unsigned(i) / unsigned(bins)), channels);
      pooled[i] = factor * grad_rows[row * grad_stride] * pooled_grad[first * bins + i];
    }
    __syncthreads();
    const int items = (count + kThreadPlanes - 1) / kThreadPlanes * runs;
    for (int item = threadIdx.x; item < items; item += kBlock) {
      const int group = int(unsigned(item) / unsigned(runs)), pixel = (item - group * runs) * kRun;
      const int plane = group * kThreadPlanes, left = count - plane;
      int y = int(unsigned(pixel) / unsigned(width)), x = pixel - y * width;
      Run<S, kRun> values[kThreadPlanes];
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        const Cover<T> over_y = covers[y], over_x = covers[height + x];
        const T* corner = pooled + plane * bins;
        const int a = over_y.first * out_w + over_x.first, b = over_y.first * out_w + over_x.second;
        const int c = over_y.second * out_w + over_x.first, d = over_y.second * out_w + over_x.second;
        const T share_a = over_y.first_share * over_x.first_share, share_b = over_y.first_share * over_x.second_share;
        const T share_c = over_y.second_share * over_x.first_share, share_d = over_y.second_share * over_x.second_share;
#pragma unroll
        for (int p = 0; p < kThreadPlanes; ++p) {
          values[p].values[j] =
              static_cast<S>(share_a * corner[a] + share_b * corner[b] + share_c * corner[c] + share_d * corner[d]);
          if (p + 1 < left) corner += bins;  // past the last plane its values again, which nobody stores
        }
        if (++x == width) x = 0, ++y;
      }
      S* out = grad + (first + plane) * height * width + pixel;
#pragma unroll
      for (int p = 0; p < kThreadPlanes; ++p) {
        if (p < left) store_run(out + int64_t(p) * height * width, values[p]);
      }
    }
  }
}

// Any sizes, value by value.
template <typename S, typename T>
__global__ void __launch_bounds__(kBlock) unpool_any_kernel(
    const T* grad_rows, int64_t grad_stride, T factor, const T* pooled_grad, int64_t planes, int64_t channels, int height,
    int width, int out_h, int out_w, S* grad) {
  const int64_t area = int64_t(height) * width, bins = int64_t(out_h) * out_w;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < planes * area; i += int64_t(gridDim.x) * kBlock) {
    const int64_t plane = divide(i, area), pixel = i - plane * area;
    const int y = int(divide(pixel, width)), x = int(pixel - int64_t(y) * width);
    T sum = T(0);
    for (int p = bin_begin(y, out_h, height); p < bin_end(y, out_h, height); ++p) {
      for (int q = bin_begin(x, out_w, width); q < bin_end(x, out_w, width); ++q) {
        const T share = bin_share<T>(p, height, out_h) * bin_share<T>(q, width, out_w);
        sum += share * pooled_grad[plane * bins + int64_t(p) * out_w + q];
      }
    }
    grad[i] = static_cast<S>(factor * grad_rows[divide(plane, channels) * grad_stride] * sum);
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
  using T = Accumulate<S>;
  const int64_t planes = rows * channels, bins = int64_t(out_h) * out_w;
  if (planes == 0) return;
  const bool fits =
      height <= kAxis && width <= kAxis && out_h <= height && out_w <= width && bins * kThreadPlanes <= kPlaneValues;
  if (!fits) {
    CLS2DET_LAUNCH(
        (unpool_any_kernel<S, T>), grid_of(ceil_div(planes * height * width, kBlock)), stream, grad_rows, grad_stride, factor,
        pooled_grad, planes, channels, height, width, out_h, out_w, grad);
    return;
  }
  const int most = int(kPlaneValues / bins) / kThreadPlanes * kThreadPlanes;
  const int block_planes = most < kBlockPlanes ? most : kBlockPlanes;
  const bool wide = is_wide(DenseShape{planes, 1, int64_t(height) * width}, grad, int64_t(height) * width);
  const unsigned grid = grid_of(ceil_div(planes, block_planes));
  if (wide) {
    CLS2DET_LAUNCH(
        (unpool_kernel<kWide<S>, S, T>), grid, stream, grad_rows, grad_stride, factor, pooled_grad, planes, channels, height,
        width, out_h, out_w, block_planes, grad);
  } else {
    CLS2DET_LAUNCH(
        (unpool_kernel<1, S, T>), grid, stream, grad_rows, grad_stride, factor, pooled_grad, planes, channels, height, width,
        out_h, out_w, block_planes, grad);
  }
}

#define INSTANTIATE(S)                                                                                              \
  template void matched_feature_loss_rows(const FeatureLoss<S>&, cudaStream_t);                                     \
  template void unpool_windows(                                                                                     \
      const Accumulate<S>*, int64_t, Accumulate<S>, const Accumulate<S>*, int64_t, int64_t, int, int, int, int, S*, \
      cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
