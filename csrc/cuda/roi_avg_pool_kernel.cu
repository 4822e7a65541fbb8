// roi_avg_pool: adaptive average pooling of the bilinear crop of each box, from the axis tables; the crop is never made.
//
//     out[n, c, p, q] = sum_r sum_s Wy[p, r] Wx[q, s] I[c, r, s]
//
// Also the partial sums of the box gradients, and their reduction, which every operator on boxes shares.
#include "cuda/roi_pool.cuh"
#include "math/sampling.h"

namespace cls2det {
namespace {

template <typename S, typename T, typename Out>
__global__ void __launch_bounds__(kBlock)
    pool_kernel(MapView<S> map, const int64_t* image_index, Axes<T> axes, Tiling tiling, Out* out) {
  const int64_t values = map.channels * int64_t(axes.out_h) * axes.out_w;
  for (int64_t block = blockIdx.x; block < axes.count * tiling.tiles; block += gridDim.x) {
    const int64_t n = divide(block, tiling.tiles), tile = block - n * tiling.tiles;
    const BoxAxes<T> box = box_axes(axes, n);
    // an ignored box has no entries and so pools to 0, on image 0 for want of one
    const int64_t image = box.state == kIgnored ? 0 : image_index ? image_index[n] : n;
    Out* o = out + n * values;
    pool_tile<false>(map, image, axes, box, tiling, tile, [&](int64_t i, const Pooled<T>& pooled) {
      o[i] = static_cast<Out>(pooled.value);
    });
  }
}

// d L / d edge = sum g * d pooled / d edge
template <typename S, typename T>
__global__ void __launch_bounds__(kBlock)
    pool_edges_kernel(MapView<S> map, const int64_t* image_index, Axes<T> axes, Tiling tiling, const T* grad, T* partial) {
  CLS2DET_SHARED(T, shared, 5 * kWarps);
  const int64_t values = map.channels * int64_t(axes.out_h) * axes.out_w;
  for (int64_t block = blockIdx.x; block < axes.count * tiling.tiles; block += gridDim.x) {
    const int64_t n = divide(block, tiling.tiles), tile = block - n * tiling.tiles;
    const BoxAxes<T> box = box_axes(axes, n);
    T sums[5] = {};
    if (box.state != kIgnored) {
      const T* g = grad + n * values;
      pool_tile<true>(map, image_index ? image_index[n] : n, axes, box, tiling, tile, [&](int64_t i, const Pooled<T>& pooled) {
        sums[1] += g[i] * pooled.x1;
        sums[2] += g[i] * pooled.y1;
        sums[3] += g[i] * pooled.x2;
        sums[4] += g[i] * pooled.y2;
      });
    }
    block_sum<5>(sums, shared);
    if (threadIdx.x == 0) {
      for (int e = 0; e < 5; ++e) partial[block * 5 + e] = sums[e];
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlock) sum_partials_kernel(
    const T* partial, int64_t tiles, T share, BoxList<T> boxes, int height, int width, bool clip, T* rows, T* grad_boxes) {
  for (int64_t k = int64_t(blockIdx.x) * kBlock + threadIdx.x; k < boxes.count; k += int64_t(gridDim.x) * kBlock) {
    T sums[5] = {};
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int e = 0; e < 5; ++e) sums[e] += partial[(k * tiles + tile) * 5 + e];
    }
    if (rows) rows[k] = sums[0] * share;
    if (grad_boxes) {
      const MapBox<T> b = map_box(boxes.boxes + 4 * k, boxes.scale, height, width, clip);
      const bool moves[4] = {b.moves_x1, b.moves_y1, b.moves_x2, b.moves_y2};
      for (int e = 0; e < 4; ++e) {  // a box that is not finite has left NaN in its sums, an ignored one 0
        const bool lost = !b.finite && sums[1 + e] != T(0);
        grad_boxes[4 * k + e] = moves[e] || lost ? sums[1 + e] * share * boxes.scale : T(0);
      }
    }
  }
}

}  // namespace

template <typename S>
Tiling pool_tiling(const MapView<S>& map, const Axes<Accumulate<S>>& axes) {
  // Neighbouring lanes should read neighbouring memory: channels of a channels-last map, else pixels of one bin's row, for
  // which several lanes share a bin that is wide enough. A row's entries are about half of its slots.
  const bool channels_first = map.stride_c == 1 && map.stride_x != 1 && map.channels >= 16;
  const int lanes = channels_first || axes.slots_x < 8 ? 1 : axes.slots_x < 32 ? 4 : 16;
  const int64_t all = channel_slots(map.channels) * int64_t(axes.out_h) * axes.out_w;
  // A fixed share, so that the sums of a row do not depend on other rows; wide bins take long enough one by one.
  const int64_t items = (lanes == 16 ? 1 : 2) * (kBlock / lanes);
  return {lanes, channels_first, items, ceil_div(all, items)};
}

template <typename S, typename Out>
void roi_avg_pool_forward(
    const MapView<S>& map, const int64_t* image_index, const Axes<Accumulate<S>>& axes, Out* out, cudaStream_t stream) {
  const Tiling tiling = pool_tiling(map, axes);
  if (axes.count * tiling.tiles == 0) return;
  if (map.images == 0) {  // every box is ignored and there is no image to pretend with
    cudaMemsetAsync(out, 0, sizeof(Out) * axes.count * map.channels * axes.out_h * axes.out_w, stream);
    return;
  }
  CLS2DET_LAUNCH(
      (pool_kernel<S, Accumulate<S>, Out>), grid_of(axes.count * tiling.tiles), stream, map, image_index, axes, tiling, out);
}

template <typename S>
void roi_avg_pool_edges(
    const MapView<S>& map, const int64_t* image_index, const Axes<Accumulate<S>>& axes, const Accumulate<S>* grad,
    Accumulate<S>* partial, cudaStream_t stream) {
  const Tiling tiling = pool_tiling(map, axes);
  if (axes.count * tiling.tiles == 0) return;
  CLS2DET_LAUNCH(
      (pool_edges_kernel<S, Accumulate<S>>), grid_of(axes.count * tiling.tiles), stream, map, image_index, axes, tiling, grad,
      partial);
}

template <typename T>
void sum_partials(
    const T* partial, int64_t tiles, T share, const BoxList<T>& boxes, int height, int width, bool clip, T* rows, T* grad_boxes,
    cudaStream_t stream) {
  if (boxes.count == 0) return;
  CLS2DET_LAUNCH(
      sum_partials_kernel<T>, grid_of(ceil_div(boxes.count, kBlock)), stream, partial, tiles, share, boxes, height, width, clip,
      rows, grad_boxes);
}

#define INSTANTIATE(S)                                                                                                 \
  template Tiling pool_tiling(const MapView<S>&, const Axes<Accumulate<S>>&);                                          \
  template void roi_avg_pool_forward(const MapView<S>&, const int64_t*, const Axes<Accumulate<S>>&, S*, cudaStream_t); \
  template void roi_avg_pool_edges(                                                                                    \
      const MapView<S>&, const int64_t*, const Axes<Accumulate<S>>&, const Accumulate<S>*, Accumulate<S>*, cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

#define INSTANTIATE_TARGET(S) \
  template void roi_avg_pool_forward(const MapView<S>&, const int64_t*, const Axes<float>&, float*, cudaStream_t);
INSTANTIATE_TARGET(c10::Half)
INSTANTIATE_TARGET(c10::BFloat16)

#define INSTANTIATE_SUM(T) \
  template void sum_partials(const T*, int64_t, T, const BoxList<T>&, int, int, bool, T*, T*, cudaStream_t);
INSTANTIATE_SUM(float)
INSTANTIATE_SUM(double)

}  // namespace cls2det
