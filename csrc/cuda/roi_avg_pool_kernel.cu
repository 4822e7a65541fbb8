// roi_avg_pool on the GPU: a thread (or, for large bins, a warp) per bin and channel; d / d boxes summed over blocks of
// channels in a fixed order; d / d features by one block per image and channel, boxes in their order.
#include "cuda/kernels.h"
#include "cuda/roi_pool.cuh"

namespace cls2det {
namespace {

// Large bins are shared by the lanes of a warp: with S = 112 and P = 4 a bin has up to 56 pixels in a row.
bool wide_bins(const RoiPooling& pooling) { return pooling.samples_w >= 16 * pooling.out_w; }

template <typename S, typename O, bool kWide>
__global__ void roi_avg_pool(RoiSide<S> side, RoiPooling pooling, RoiTables<Accumulate<S>> tables, O* out) {
  using A = Accumulate<S>;
  const int lanes = kWide ? kWarp : 1, lane = kWide ? threadIdx.x % kWarp : 0;
  const int64_t bins = int64_t(pooling.out_h) * pooling.out_w;
  const int64_t item = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
  if (item >= side.count * side.channels * bins) return;  // the same for all lanes of a warp where they share an item
  int64_t box, channel, bin;
  if (side.stride_c == 1) {  // channels-last: neighbouring threads read neighbouring channels
    channel = item % side.channels, bin = item / side.channels % bins, box = item / side.channels / bins;
  } else {
    bin = item % bins, channel = item / bins % side.channels, box = item / bins / side.channels;
  }
  Pooled<A> pooled =
      pool_bin<false>(side, tables, box, channel, int(bin / pooling.out_w), int(bin % pooling.out_w), lane, lanes);
  if (kWide) pooled.value = warp_sum(pooled.value);
  if (lane == 0) out[(box * side.channels + channel) * bins + bin] = static_cast<O>(pooled.value);
}

// Block (box, channel chunk): partial (boxes, chunks, 4) = sum grad * d pooled / d edge.
template <typename S>
__global__ void roi_avg_pool_boxes(
    RoiSide<S> side, RoiPooling pooling, RoiTables<Accumulate<S>> tables, const Accumulate<S>* grad, int64_t chunks,
    Accumulate<S>* partial) {
  using A = Accumulate<S>;
  __shared__ A shared[kThreads / kWarp * 4];
  const int64_t bins = int64_t(pooling.out_h) * pooling.out_w, box = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const int64_t size = (side.channels + chunks - 1) / chunks, first = chunk * size;
  const int64_t last = first + size < side.channels ? first + size : side.channels;
  A edges[4] = {0, 0, 0, 0};
  for (int64_t item = threadIdx.x; item < (last - first) * bins; item += blockDim.x) {
    const int64_t channel = first + item / bins, bin = item % bins;
    const Pooled<A> pooled =
        pool_bin<true>(side, tables, box, channel, int(bin / pooling.out_w), int(bin % pooling.out_w), 0, 1);
    const A g = grad[(box * side.channels + channel) * bins + bin];
    edges[0] += g * pooled.x1;
    edges[1] += g * pooled.y1;
    edges[2] += g * pooled.x2;
    edges[3] += g * pooled.y2;
  }
  block_sum(edges, shared);
  if (threadIdx.x == 0) {
    for (int e = 0; e < 4; ++e) partial[int64_t(blockIdx.x) * 4 + e] = edges[e];
  }
}

template <typename S>
__global__ void sum_box_gradients(
    RoiSide<S> side, bool clip, int64_t chunks, const Accumulate<S>* partial, Accumulate<S>* grad_boxes) {
  using A = Accumulate<S>;
  const int64_t box = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (box >= side.count) return;
  A edges[4] = {0, 0, 0, 0};
  if (has_image(side, box)) {
    for (int64_t i = box * chunks; i < (box + 1) * chunks; ++i) {
      for (int e = 0; e < 4; ++e) edges[e] += partial[4 * i + e];
    }
    write_box_gradient(side, clip, box, edges, grad_boxes);
  } else {
    for (int e = 0; e < 4; ++e) grad_boxes[4 * box + e] = A(0);
  }
}

// Block (image, channel): grad_map (images, C, height, width) += every box of the image, in order.
template <typename S>
__global__ void roi_spread(
    RoiSide<S> side, RoiPooling pooling, RoiTables<Accumulate<S>> tables, const Accumulate<S>* grad, Accumulate<S>* grad_map) {
  using A = Accumulate<S>;
  CLS2DET_DYNAMIC_SHARED(shared);
  A* line = reinterpret_cast<A*>(shared) + threadIdx.x / kWarp * pooling.out_w;
  const int64_t image = blockIdx.x / side.channels, channel = blockIdx.x % side.channels;
  const int64_t bins = int64_t(pooling.out_h) * pooling.out_w;
  A* plane = grad_map + int64_t(blockIdx.x) * side.height * side.width;
  for (int64_t box = 0; box < side.count; ++box) {
    if (side.image_index[box] != image) continue;
    spread_bins(side, pooling, tables, box, grad + (box * side.channels + channel) * bins, line, plane);
    __syncthreads();
  }
}

}  // namespace

template <typename S>
int64_t channel_chunks(const RoiSide<S>& side, const RoiPooling& pooling) {
  const int64_t bins = int64_t(pooling.out_h) * pooling.out_w;
  int64_t size = 2 * kThreads / (bins * (wide_bins(pooling) ? kWarp : 1));  // channels that keep a block's threads busy
  size = size < 1 ? 1 : size;
  return side.channels > 0 ? (side.channels + size - 1) / size : 1;
}

template <typename S, typename O>
void launch_roi_avg_pool(
    const RoiSide<S>& side, const RoiPooling& pooling, const RoiTables<Accumulate<S>>& tables, O* out, cudaStream_t stream) {
  const int64_t items = side.count * side.channels * pooling.out_h * pooling.out_w;
  if (wide_bins(pooling)) {
    CLS2DET_LAUNCH((roi_avg_pool<S, O, true>), blocks_for(items, kThreads / kWarp), kThreads, 0, stream, side, pooling, tables, out);
  } else {
    CLS2DET_LAUNCH((roi_avg_pool<S, O, false>), blocks_for(items, kThreads), kThreads, 0, stream, side, pooling, tables, out);
  }
}

template <typename S>
void launch_roi_avg_pool_boxes(
    const RoiSide<S>& side, const RoiPooling& pooling, const RoiTables<Accumulate<S>>& tables, const Accumulate<S>* grad,
    int64_t chunks, Accumulate<S>* partial, Accumulate<S>* grad_boxes, cudaStream_t stream) {
  if (side.count == 0) return;
  CLS2DET_LAUNCH(roi_avg_pool_boxes<S>, side.count * chunks, kThreads, 0, stream, side, pooling, tables, grad, chunks, partial);
  CLS2DET_LAUNCH(
      sum_box_gradients<S>, blocks_for(side.count, kThreads), kThreads, 0, stream, side, pooling.clip, chunks, partial, grad_boxes);
}

template <typename S>
void launch_roi_spread(
    const RoiSide<S>& side, const RoiPooling& pooling, const RoiTables<Accumulate<S>>& tables, const Accumulate<S>* grad,
    Accumulate<S>* grad_map, cudaStream_t stream) {
  if (side.images * side.channels == 0) return;
  const size_t shared = sizeof(Accumulate<S>) * pooling.out_w * (kThreads / kWarp);
  CLS2DET_LAUNCH(roi_spread<S>, side.images * side.channels, kThreads, shared, stream, side, pooling, tables, grad, grad_map);
}

#define INSTANTIATE(S)                                                                                                      \
  template int64_t channel_chunks<S>(const RoiSide<S>&, const RoiPooling&);                                                 \
  template void launch_roi_avg_pool<S, S>(                                                                                  \
      const RoiSide<S>&, const RoiPooling&, const RoiTables<Accumulate<S>>&, S*, cudaStream_t);                             \
  template void launch_roi_avg_pool_boxes<S>(                                                                               \
      const RoiSide<S>&, const RoiPooling&, const RoiTables<Accumulate<S>>&, const Accumulate<S>*, int64_t, Accumulate<S>*, \
      Accumulate<S>*, cudaStream_t);                                                                                        \
  template void launch_roi_spread<S>(                                                                                       \
      const RoiSide<S>&, const RoiPooling&, const RoiTables<Accumulate<S>>&, const Accumulate<S>*, Accumulate<S>*, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)
INSTANTIATE(BFloat16)
// the ground-truth side of 16-bit maps is kept in float32
template void launch_roi_avg_pool<Half, float>(const RoiSide<Half>&, const RoiPooling&, const RoiTables<float>&, float*, cudaStream_t);
template void launch_roi_avg_pool<BFloat16, float>(
    const RoiSide<BFloat16>&, const RoiPooling&, const RoiTables<float>&, float*, cudaStream_t);

}  // namespace cls2det
