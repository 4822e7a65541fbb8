// attention_means: the means of the rows and columns of dense images, of F or |F|, in one pass.
//
// A block holds kRows rows of kBlock columns. Each thread sums its column, each warp its part of every row.
#include "cuda/attention_means_kernel.h"

#include "cuda/launch.cuh"
#include "cuda/map_walk.cuh"
#include "cuda/reduce.cuh"
#include "math/feature_distance.h"

namespace cls2det {
namespace {

constexpr int kRows = 32;

template <typename S>
__global__ void __launch_bounds__(kBlock) attention_sums_kernel(AttentionMeans<S> a, int64_t down, int64_t across) {
  using T = Accumulate<S>;
  CLS2DET_SHARED(T, shared, kRows * kWarps);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t outer = a.shape.outer, inner = a.shape.inner, total = a.shape.images * down * across;
  for (int64_t block = blockIdx.x; block < total; block += gridDim.x) {
    const int64_t strip = divide(block, across), image = divide(strip, down);
    const int64_t first_row = (strip - image * down) * kRows;
    const int64_t column = (block - strip * across) * kBlock + threadIdx.x;
    const S* features = a.features + image * a.stride + column;
    T column_sum = T(0);
#pragma unroll 8
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first_row + r;
      T value = row < outer && column < inner ? static_cast<T>(features[row * inner]) : T(0);
      if (a.absolute) value = magnitude(value);
      column_sum += value;
      const T row_sum = lanes_sum(value);
      if (lane == 0) shared[r * kWarps + warp] = row_sum;
    }
    if (column < inner) a.inner_partial[strip * inner + column] = column_sum;
    __syncthreads();
    const int64_t row = first_row + threadIdx.x;
    if (threadIdx.x < kRows && row < outer) {
      T sum = T(0);
      for (int w = 0; w < kWarps; ++w) sum += shared[threadIdx.x * kWarps + w];
      a.outer_partial[(image * across + block - strip * across) * outer + row] = sum;
    }
    __syncthreads();
  }
}

// means (images, width) = share * the sum over `parts` of partial (images, parts, width)
template <typename T>
__global__ void __launch_bounds__(kBlock)
    mean_of_parts_kernel(const T* partial, int64_t images, int64_t parts, int64_t width, T share, T* means) {
  const int64_t total = images * width;
  for (int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x; i < total; i += int64_t(gridDim.x) * kBlock) {
    const int64_t image = divide(i, width);
    T sum = T(0);
    for (int64_t p = 0; p < parts; ++p) sum += partial[(image * parts + p) * width + i - image * width];
    means[i] = share * sum;
  }
}

template <typename S, int kRun>
__global__ void __launch_bounds__(kBlock)
    attention_gradients_kernel(AttentionMeans<S> a, Accumulate<S> outer_share, Accumulate<S> inner_share) {
  using T = Accumulate<S>;
  for_runs<kRun>(a.shape, [&](int64_t i, MapPlace at) {
    Run<S, kRun> features{}, grad;
    if (a.absolute) features = load_run<kRun>(a.features + at.image * a.stride + at.value);
#pragma unroll
    for (int n = 0; n < kRun; ++n, advance(a.shape, at)) {
      const T upstream = outer_share * a.outer_grad[at.image * a.shape.outer + at.outer] +
                         inner_share * a.inner_grad[at.image * a.shape.inner + at.inner];
      grad.values[n] = static_cast<S>((a.absolute ? sign(static_cast<T>(features.values[n])) : T(1)) * upstream);
    }
    store_run(a.grad + i, grad);
  });
}

template <typename T>
void mean_of_parts(const T* partial, int64_t images, int64_t parts, int64_t width, T share, T* means, cudaStream_t stream) {
  if (images * width == 0) return;
  CLS2DET_LAUNCH(
      (mean_of_parts_kernel<T>), grid_of(ceil_div(images * width, kBlock)), stream, partial, images, parts, width, share,
      means);
}

template <typename T>
T share_of(int64_t count) {
  return T(1) / T(count > 0 ? count : 1);
}

}  // namespace

AttentionTiles attention_tiles(const DenseShape& shape) {
  return {ceil_div(shape.outer, kRows), ceil_div(shape.inner, kBlock)};
}

template <typename S>
void attention_sums(const AttentionMeans<S>& args, cudaStream_t stream) {
  using T = Accumulate<S>;
  const DenseShape& shape = args.shape;
  const AttentionTiles tiles = attention_tiles(shape);
  const int64_t blocks = shape.images * tiles.down * tiles.across;
  if (blocks > 0) CLS2DET_LAUNCH((attention_sums_kernel<S>), grid_of(blocks), stream, args, tiles.down, tiles.across);
  mean_of_parts(
      args.outer_partial, shape.images, tiles.across, shape.outer, share_of<T>(shape.inner), args.outer_means, stream);
  mean_of_parts(args.inner_partial, shape.images, tiles.down, shape.inner, share_of<T>(shape.outer), args.inner_means, stream);
}

template <typename S>
void attention_gradients(const AttentionMeans<S>& args, cudaStream_t stream) {
  using T = Accumulate<S>;
  const DenseShape& shape = args.shape;
  const int64_t total = shape.images * shape.outer * shape.inner;
  if (total == 0) return;
  const T outer_share = share_of<T>(shape.inner), inner_share = share_of<T>(shape.outer);
  if (is_wide(shape, args.features, args.stride) && is_wide(shape, args.grad, shape.outer * shape.inner)) {
    CLS2DET_LAUNCH(
        (attention_gradients_kernel<S, kWide<S>>), grid_of(ceil_div(total, kBlock * kWide<S>)), stream, args, outer_share,
        inner_share);
  } else {
    CLS2DET_LAUNCH(
        (attention_gradients_kernel<S, 1>), grid_of(ceil_div(total, kBlock)), stream, args, outer_share, inner_share);
  }
}

#define INSTANTIATE(S)                                                  \
  template void attention_sums(const AttentionMeans<S>&, cudaStream_t); \
  template void attention_gradients(const AttentionMeans<S>&, cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
