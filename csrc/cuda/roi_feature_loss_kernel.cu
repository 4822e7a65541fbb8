// roi_feature_loss on the GPU: a block per predicted box and chunk of channels pools, compares and sums loss and box gradient
// in one pass; chunks are then added in order. Backward by features: recomputed by one block per image and channel.
#include "cuda/kernels.h"
#include "cuda/roi_pool.cuh"
#include "math/feature_distance.h"

namespace cls2det {
namespace {

// The ground truth that row k counts for, or -1: match, image and the match's image must all be in range.
template <typename S>
__device__ int64_t counted_match(const RoiLoss<S>& args, int64_t k) {
  const int64_t match = args.matched[k];
  const bool counts = match >= 0 && match < args.target.count && has_image(args.side, k) && has_image(args.target, match);
  return counts ? match : -1;
}

// kWide: a warp per bin (every lane has the whole value after warp_sum, and its own part of the derivatives).
template <typename S, bool kWide, bool kGrad>
__global__ void roi_feature_loss(RoiLoss<S> args, int64_t chunks, Accumulate<S>* partial) {
  using A = Accumulate<S>;
  __shared__ A shared[kThreads / kWarp * 5];
  const int lanes = kWide ? kWarp : 1, lane = kWide ? threadIdx.x % kWarp : 0;
  const int64_t channels = args.side.channels, bins = int64_t(args.pooling.out_h) * args.pooling.out_w;
  const int64_t k = blockIdx.x / chunks, chunk = blockIdx.x % chunks, match = counted_match(args, k);
  const int64_t size = (channels + chunks - 1) / chunks, first = chunk * size;
  const int64_t last = match < 0 ? first : first + size < channels ? first + size : channels;
  A sums[5] = {0, 0, 0, 0, 0};
  for (int64_t item = threadIdx.x / lanes; item < (last - first) * bins; item += blockDim.x / lanes) {
    int64_t channel, bin;
    if (args.side.stride_c == 1) {  // channels-last: neighbouring threads read neighbouring channels
      channel = first + item % (last - first), bin = item / (last - first);
    } else {
      channel = first + item / bins, bin = item % bins;
    }
    Pooled<A> pooled = pool_bin<kGrad>(
        args.side, args.tables, k, channel, int(bin / args.pooling.out_w), int(bin % args.pooling.out_w), lane, lanes);
    if (kWide) pooled.value = warp_sum(pooled.value);
    const A difference = pooled.value - args.pooled_target[(match * channels + channel) * bins + bin];
    if (lane == 0) sums[0] += distance(difference, args.loss, args.beta);
    if (kGrad) {  // d L / d edge = d'(difference) * d pooled / d edge
      const A slope = distance_slope(difference, args.loss, args.beta);
      sums[1] += slope * pooled.x1;
      sums[2] += slope * pooled.y1;
      sums[3] += slope * pooled.x2;
      sums[4] += slope * pooled.y2;
    }
  }
  block_sum(sums, shared);
  if (threadIdx.x == 0) {
    for (int e = 0; e < 5; ++e) partial[int64_t(blockIdx.x) * 5 + e] = sums[e];
  }
}

template <typename S>
__global__ void sum_rows(
    RoiLoss<S> args, int64_t chunks, const Accumulate<S>* partial, Accumulate<S>* rows, Accumulate<S>* grad_boxes) {
  using A = Accumulate<S>;
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= args.side.count) return;
  const A values = A(args.side.channels) * A(args.pooling.out_h) * A(args.pooling.out_w);
  const A share = A(1) / (values > A(1) ? values : A(1));
  A sums[5] = {0, 0, 0, 0, 0};
  for (int64_t i = k * chunks; i < (k + 1) * chunks; ++i) {
    for (int e = 0; e < 5; ++e) sums[e] += partial[5 * i + e] * share;
  }
  rows[k] = sums[0];
  if (grad_boxes == nullptr) return;
  if (counted_match(args, k) < 0) {
    for (int e = 0; e < 4; ++e) grad_boxes[4 * k + e] = A(0);
  } else {
    write_box_gradient(args.side, args.pooling.clip, k, sums + 1, grad_boxes);
  }
}

// Block (image, channel): recompute each box's difference into scratch (one slice of `bins` per block), then spread it.
template <typename S>
__global__ void roi_feature_loss_backward(
    RoiLoss<S> args, const Accumulate<S>* grad_rows, Accumulate<S>* scratch, Accumulate<S>* grad_map) {
  using A = Accumulate<S>;
  CLS2DET_DYNAMIC_SHARED(shared);
  A* line = reinterpret_cast<A*>(shared) + threadIdx.x / kWarp * args.pooling.out_w;
  const int64_t channels = args.side.channels, image = blockIdx.x / channels, channel = blockIdx.x % channels;
  const int64_t bins = int64_t(args.pooling.out_h) * args.pooling.out_w;
  const A share = A(1) / (A(channels) * A(bins));
  A* slopes = scratch + int64_t(blockIdx.x) * bins;
  A* plane = grad_map + int64_t(blockIdx.x) * args.side.height * args.side.width;
  for (int64_t k = 0; k < args.side.count; ++k) {
    if (args.side.image_index[k] != image) continue;
    const int64_t match = counted_match(args, k);
    if (match < 0) continue;
    for (int64_t bin = threadIdx.x; bin < bins; bin += blockDim.x) {
      const Pooled<A> pooled =
          pool_bin<false>(args.side, args.tables, k, channel, int(bin / args.pooling.out_w), int(bin % args.pooling.out_w), 0, 1);
      const A difference = pooled.value - args.pooled_target[(match * channels + channel) * bins + bin];
      slopes[bin] = distance_slope(difference, args.loss, args.beta) * share * grad_rows[k];
    }
    __syncthreads();
    spread_bins(args.side, args.pooling, args.tables, k, slopes, line, plane);
    __syncthreads();
  }
}

}  // namespace

template <typename S>
void launch_roi_feature_loss(
    const RoiLoss<S>& args, int64_t chunks, Accumulate<S>* partial, Accumulate<S>* rows, Accumulate<S>* grad_boxes, cudaStream_t stream) {
  if (args.side.count == 0) return;
  const int64_t blocks = args.side.count * chunks;
  const bool wide = args.pooling.samples_w >= 16 * args.pooling.out_w;
  if (wide && grad_boxes) CLS2DET_LAUNCH((roi_feature_loss<S, true, true>), blocks, kThreads, 0, stream, args, chunks, partial);
  if (wide && !grad_boxes) CLS2DET_LAUNCH((roi_feature_loss<S, true, false>), blocks, kThreads, 0, stream, args, chunks, partial);
  if (!wide && grad_boxes) CLS2DET_LAUNCH((roi_feature_loss<S, false, true>), blocks, kThreads, 0, stream, args, chunks, partial);
  if (!wide && !grad_boxes) CLS2DET_LAUNCH((roi_feature_loss<S, false, false>), blocks, kThreads, 0, stream, args, chunks, partial);
  CLS2DET_LAUNCH(sum_rows<S>, blocks_for(args.side.count, kThreads), kThreads, 0, stream, args, chunks, partial, rows, grad_boxes);
}

template <typename S>
void launch_roi_feature_loss_backward(
    const RoiLoss<S>& args, const Accumulate<S>* grad_rows, Accumulate<S>* scratch, Accumulate<S>* grad_map, cudaStream_t stream) {
  if (args.side.images * args.side.channels == 0) return;
  const size_t shared = sizeof(Accumulate<S>) * args.pooling.out_w * (kThreads / kWarp);
  CLS2DET_LAUNCH(
      roi_feature_loss_backward<S>, args.side.images * args.side.channels, kThreads, shared, stream, args, grad_rows, scratch, grad_map);
}

#define INSTANTIATE(S)                                                                                                   \
  template void launch_roi_feature_loss<S>(                                                                              \
      const RoiLoss<S>&, int64_t, Accumulate<S>*, Accumulate<S>*, Accumulate<S>*, cudaStream_t);                         \
  template void launch_roi_feature_loss_backward<S>(                                                                     \
      const RoiLoss<S>&, const Accumulate<S>*, Accumulate<S>*, Accumulate<S>*, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace cls2det
