// Adaptive average pooling of the bilinear crop of each box, from the axis tables; the crop is never made.
//
//     out[n, c, p, q] = sum_r sum_s Wy[p, r] Wx[q, s] I[c, r, s]
//
// Also the sums over the tiles of a box, for the rows of losses and the gradients of boxes.
#include "cuda/roi_pool_kernel.h"

#include "cuda/roi_pool.cuh"

namespace cls2det {
namespace {

template <typename S, typename T, typename Out>
__global__ void __launch_bounds__(kBlock)
    pool_kernel(MapView<S> map, const int64_t* image_index, AxisTables<T> tables, Tiling tiling, Out* out) {
  const int64_t values = map.channels * int64_t(tables.out_h) * tables.out_w;
  for (int64_t block = blockIdx.x; block < tables.count * tiling.tiles; block += gridDim.x) {
    const int64_t n = divide(block, tiling.tiles), tile = block - n * tiling.tiles;
    const BoxTables<T> box = box_tables(tables, n);
    // an ignored box has no entries: it reads nothing and pools to 0
    const int64_t image = box.state == kIgnored ? 0 : image_index ? image_index[n] : n;
    Out* o = out + n * values;
    pool_tile<false>(map, image, tables, box, tiling, tile, [&](int64_t i, const Pooled<T>& pooled) {
      o[i] = static_cast<Out>(pooled.value);
    });
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlock) sum_partials_kernel(
    const T* partial, int64_t tiles, T share, T factor, BoxList<T> boxes, int height, int width, bool clip, T* rows,
    T* grad_boxes) {
  for (int64_t k = int64_t(blockIdx.x) * kBlock + threadIdx.x; k < boxes.count; k += int64_t(gridDim.x) * kBlock) {
    T sums[kPooledParts] = {};
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int e = 0; e < kPooledParts; ++e) sums[e] += partial[(k * tiles + tile) * kPooledParts + e];
    }
    if (rows) rows[k] = sums[kValue] * share * factor;
    if (grad_boxes) {
      const MapBox<T> b = map_box(boxes.xyxy + 4 * k, boxes.scale, height, width, clip);
      const bool moves[4] = {b.moves_x1, b.moves_y1, b.moves_x2, b.moves_y2};
      for (int e = 0; e < 4; ++e) {  // a box that is not finite has left NaN in its sums, an ignored one 0
        const bool not_finite = !b.finite && sums[kX1 + e] != T(0);
        grad_boxes[4 * k + e] = moves[e] || not_finite ? sums[kX1 + e] * share * boxes.scale : T(0);
      }
    }
  }
}

}  // namespace

template <typename S>
Tiling pool_tiling(const MapView<S>& map, const AxisTables<Accumulate<S>>& tables) {
  // Neighbouring lanes should read neighbouring memory: channels of a channels-last map, else pixels of one bin's row, for
  // which several lanes share a bin that is wide enough. A row's entries are about half of its slots.
  const bool channels_first = map.stride_c == 1 && map.stride_x != 1 && map.channels >= 16;
  const int lanes = channels_first || tables.slots_x < 8 ? 1 : tables.slots_x < 32 ? 4 : 16;
  const int64_t all = channel_slots(map.channels) * int64_t(tables.out_h) * tables.out_w;
  // The same number of items in every call, so that the sums of a row do not depend on other rows. Wide bins take long: one
  // per group of lanes is enough.
  const int64_t items = (lanes == 16 ? 1 : 2) * (kBlock / lanes);
  return {lanes, channels_first, items, ceil_div(all, items)};
}

template <typename S, typename Out>
void pool_boxes(
    const MapView<S>& map, const int64_t* image_index, const AxisTables<Accumulate<S>>& tables, Out* out, cudaStream_t stream) {
  const Tiling tiling = pool_tiling(map, tables);
  if (tables.count * tiling.tiles == 0) return;
  if (map.images == 0) {  // every box is ignored, and there is no image 0 to name
    cudaMemsetAsync(out, 0, sizeof(Out) * tables.count * map.channels * tables.out_h * tables.out_w, stream);
    return;
  }
  CLS2DET_LAUNCH(
      (pool_kernel<S, Accumulate<S>, Out>), grid_of(tables.count * tiling.tiles), stream, map, image_index, tables, tiling,
      out);
}

template <typename T>
void sum_partials(
    const T* partial, int64_t tiles, T share, T factor, const BoxList<T>& boxes, int height, int width, bool clip, T* rows,
    T* grad_boxes, cudaStream_t stream) {
  if (boxes.count == 0) return;
  CLS2DET_LAUNCH(
      sum_partials_kernel<T>, grid_of(ceil_div(boxes.count, kBlock)), stream, partial, tiles, share, factor, boxes, height,
      width, clip, rows, grad_boxes);
}

#define INSTANTIATE(S)                                                              \
  template Tiling pool_tiling(const MapView<S>&, const AxisTables<Accumulate<S>>&); \
  template void pool_boxes(const MapView<S>&, const int64_t*, const AxisTables<Accumulate<S>>&, S*, cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

#define INSTANTIATE_TARGET(S) \
  template void pool_boxes(const MapView<S>&, const int64_t*, const AxisTables<float>&, float*, cudaStream_t);
INSTANTIATE_TARGET(c10::Half)
INSTANTIATE_TARGET(c10::BFloat16)

#define INSTANTIATE_SUM(T) \
  template void sum_partials(const T*, int64_t, T, T, const BoxList<T>&, int, int, bool, T*, T*, cudaStream_t);
INSTANTIATE_SUM(float)
INSTANTIATE_SUM(double)

}  // namespace cls2det
