// roi_avg_pool, backward by boxes: the sums by edge. Forward: pool_boxes; backward by features: roi_map_gradient.
#include "cuda/roi_avg_pool_kernel.h"

#include "cuda/roi_pool.cuh"

namespace cls2det {
namespace {

// d L / d edge = sum g * d pooled / d edge
template <typename S, typename T>
__global__ void __launch_bounds__(kBlock) pool_edges_kernel(
    MapView<S> map, const int64_t* image_index, AxisTables<T> tables, Tiling tiling, const T* grad, T* partial) {
  CLS2DET_SHARED(T, shared, kPooledParts * kWarps);
  const int64_t values = map.channels * int64_t(tables.out_h) * tables.out_w;
  for (int64_t block = blockIdx.x; block < tables.count * tiling.tiles; block += gridDim.x) {
    const int64_t n = divide(block, tiling.tiles), tile = block - n * tiling.tiles;
    const BoxTables<T> box = box_tables(tables, n);
    T sums[kPooledParts] = {};
    if (box.state != kIgnored) {
      const T* g = grad + n * values;
      pool_tile<true>(
          map, image_index ? image_index[n] : n, tables, box, tiling, tile, [&](int64_t i, const Pooled<T>& pooled) {
            sums[kX1] += g[i] * pooled.x1;
            sums[kY1] += g[i] * pooled.y1;
            sums[kX2] += g[i] * pooled.x2;
            sums[kY2] += g[i] * pooled.y2;
          });
    }
    block_sum<kPooledParts>(sums, shared);
    if (threadIdx.x == 0) {
      for (int e = 0; e < kPooledParts; ++e) partial[block * kPooledParts + e] = sums[e];
    }
  }
}

}  // namespace

template <typename S>
void roi_avg_pool_edges(
    const MapView<S>& map, const int64_t* image_index, const AxisTables<Accumulate<S>>& tables, const Accumulate<S>* grad,
    Accumulate<S>* partial, cudaStream_t stream) {
  const Tiling tiling = pool_tiling(map, tables);
  if (tables.count * tiling.tiles == 0) return;
  CLS2DET_LAUNCH(
      (pool_edges_kernel<S, Accumulate<S>>), grid_of(tables.count * tiling.tiles), stream, map, image_index, tables, tiling,
      grad, partial);
}

#define INSTANTIATE(S)                                                                                           \
  template void roi_avg_pool_edges(                                                                              \
      const MapView<S>&, const int64_t*, const AxisTables<Accumulate<S>>&, const Accumulate<S>*, Accumulate<S>*, \
      cudaStream_t);
CLS2DET_FOR_STORAGE(INSTANTIATE)

}  // namespace cls2det
