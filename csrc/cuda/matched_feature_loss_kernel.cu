// matched_feature_loss on the GPU: ground truths are pooled once, a thread per bin; then a block per row pools and compares.
#include "cuda/kernels.h"
#include "math/feature_distance.h"

namespace cls2det {
namespace {

// The average of bin (p, q) of one plane (height, width).
template <typename S, typename A = Accumulate<S>>
__device__ A pool_crop(const Matched<S>& args, const S* plane, int64_t bin) {
  const int p = int(bin / args.out_w), q = int(bin % args.out_w);
  const int y0 = bin_begin(p, args.height, args.out_h), y1 = bin_end(p, args.height, args.out_h);
  const int x0 = bin_begin(q, args.width, args.out_w), x1 = bin_end(q, args.width, args.out_w);
  A sum = 0;
  for (int y = y0; y < y1; ++y) {
    for (int x = x0; x < x1; ++x) sum += static_cast<A>(plane[int64_t(y) * args.width + x]);
  }
  return sum / A(int64_t(y1 - y0) * (x1 - x0));
}

template <typename S>
__global__ void pool_targets(Matched<S> args, Accumulate<S>* pooled) {
  const int64_t bins = int64_t(args.out_h) * args.out_w, area = int64_t(args.height) * args.width;
  const int64_t item = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= args.targets * args.channels * bins) return;
  pooled[item] = pool_crop(args, args.target + item / bins * area, item % bins);
}

// Block per row k: rows[k], and grad[k] = d row / d pooled where it is asked for.
template <typename S>
__global__ void matched_feature_loss(
    Matched<S> args, const Accumulate<S>* pooled_target, Accumulate<S>* rows, Accumulate<S>* grad) {
  using A = Accumulate<S>;
  __shared__ A shared[kThreads / kWarp];
  const int64_t bins = int64_t(args.out_h) * args.out_w, area = int64_t(args.height) * args.width;
  const int64_t k = blockIdx.x, match = args.matched[k], values = args.channels * bins;
  const bool counts = match >= 0 && match < args.targets;
  const A share = A(1) / A(values > 0 ? values : 1);
  A sum[1] = {0};
  for (int64_t i = threadIdx.x; i < values; i += blockDim.x) {
    A slope = 0;
    if (counts) {
      const A difference =
          pool_crop(args, args.features + (k * args.channels + i / bins) * area, i % bins) - pooled_target[match * values + i];
      sum[0] += distance(difference, args.loss, args.beta);
      slope = distance_slope(difference, args.loss, args.beta) * share;
    }
    if (grad) grad[k * values + i] = slope;
  }
  block_sum(sum, shared);
  if (threadIdx.x == 0) rows[k] = sum[0] * share;
}

// A thread per pixel: the share of every bin that it lies in. Bin p covers y if bin_begin(p) <= y < bin_end(p), which can
// only be near p = y P / H.
template <typename S>
__global__ void matched_feature_loss_backward(
    Matched<S> args, const Accumulate<S>* grad_rows, const Accumulate<S>* pooled_grad, S* grad) {
  using A = Accumulate<S>;
  const int64_t area = int64_t(args.height) * args.width, bins = int64_t(args.out_h) * args.out_w;
  const int64_t item = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= args.count * args.channels * area) return;
  const int y = int(item % area / args.width), x = int(item % args.width);
  const int64_t plane = item / area;
  const A* g = pooled_grad + plane * bins;
  const int p0 = int(int64_t(y) * args.out_h / args.height), p1 = int((int64_t(y + 1) * args.out_h - 1) / args.height);
  const int q0 = int(int64_t(x) * args.out_w / args.width), q1 = int((int64_t(x + 1) * args.out_w - 1) / args.width);
  A sum = 0;
  for (int p = p0 > 0 ? p0 - 1 : 0; p <= p1 + 1 && p < args.out_h; ++p) {
    const int y0 = bin_begin(p, args.height, args.out_h), y1 = bin_end(p, args.height, args.out_h);
    if (y < y0 || y >= y1) continue;
    for (int q = q0 > 0 ? q0 - 1 : 0; q <= q1 + 1 && q < args.out_w; ++q) {
      const int x0 = bin_begin(q, args.width, args.out_w), x1 = bin_end(q, args.width, args.out_w);
      if (x >= x0 && x < x1) sum += g[int64_t(p) * args.out_w + q] / A(int64_t(y1 - y0) * (x1 - x0));
    }
  }
  grad[item] = static_cast<S>(sum * grad_rows[plane / args.channels]);
}

}  // namespace

template <typename S>
void launch_matched_feature_loss(
    const Matched<S>& args, Accumulate<S>* pooled_target, Accumulate<S>* rows, Accumulate<S>* grad, cudaStream_t stream) {
  if (args.count == 0) return;
  const int64_t items = args.targets * args.channels * args.out_h * args.out_w;
  CLS2DET_LAUNCH(pool_targets<S>, blocks_for(items, kThreads), kThreads, 0, stream, args, pooled_target);
  CLS2DET_LAUNCH(matched_feature_loss<S>, args.count, kThreads, 0, stream, args, pooled_target, rows, grad);
}

template <typename S>
void launch_matched_feature_loss_backward(
    const Matched<S>& args, const Accumulate<S>* grad_rows, const Accumulate<S>* pooled_grad, S* grad, cudaStream_t stream) {
  const int64_t items = args.count * args.channels * args.height * args.width;
  CLS2DET_LAUNCH(
      matched_feature_loss_backward<S>, blocks_for(items, kThreads), kThreads, 0, stream, args, grad_rows, pooled_grad, grad);
}

#define INSTANTIATE(S)                                                                                                         \
  template void launch_matched_feature_loss<S>(const Matched<S>&, Accumulate<S>*, Accumulate<S>*, Accumulate<S>*, cudaStream_t); \
  template void launch_matched_feature_loss_backward<S>(                                                                       \
      const Matched<S>&, const Accumulate<S>*, const Accumulate<S>*, S*, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)

}  // namespace cls2det
