// The comparison of pooled boxes with pooled targets: roi_feature_loss, and matched_feature_loss, whose "boxes" are whole maps.
//
//     row[k] = 1 / (C bins) sum_{c, bin} d(pool(map, box_k)[c, bin] - target[matched[k], c, bin])
//     d row / d edge = 1 / (C bins) sum d'(difference) d pooled / d edge
//
// One pass leaves the loss and the gradient of all four edges; nothing pooled is stored on the predicted side.
#pragma once

#include "cuda/feature_loss.h"
#include "cuda/roi_pool.cuh"

namespace cls2det {
namespace {

// The target that row k counts for, or -1: match, image and the match's image must all be in range.
template <typename S>
__device__ int64_t valid_match(const FeatureLoss<S>& a, int64_t k, int state) {
  const int64_t match = a.matched[k];
  if (state == kIgnored || match < 0 || match >= a.targets) return -1;
  return a.target_counts && a.target_counts[match * a.target_counts_stride] == kIgnored ? -1 : match;
}

template <typename S, bool kEdges>
__global__ void __launch_bounds__(kBlock) feature_loss_kernel(FeatureLoss<S> a, Tiling tiling) {
  using T = Accumulate<S>;
  CLS2DET_SHARED(T, shared, kPooledParts * kWarps);
  const int64_t values = a.map.channels * int64_t(a.tables.out_h) * a.tables.out_w;
  for (int64_t block = blockIdx.x; block < a.tables.count * tiling.tiles; block += gridDim.x) {
    const int64_t k = divide(block, tiling.tiles), tile = block - k * tiling.tiles;
    const BoxTables<T> box = box_tables(a.tables, k);
    const int64_t match = valid_match(a, k, box.state);
    T sums[kPooledParts] = {};
    if (match >= 0) {
      const T* target = a.target + match * values;
      const T upstream = (a.grad_rows ? a.grad_rows[k * a.grad_stride] : T(1)) * a.share;
      pool_tile<kEdges>(
          a.map, a.image_index ? a.image_index[k] : k, a.tables, box, tiling, tile, [&](int64_t i, const Pooled<T>& pooled) {
            const T difference = pooled.value - target[i];
            const T slope = distance_slope(difference, a.loss, a.beta);
            sums[kValue] += distance(difference, a.loss, a.beta);
            if (kEdges) {
              sums[kX1] += slope * pooled.x1;
              sums[kY1] += slope * pooled.y1;
              sums[kX2] += slope * pooled.x2;
              sums[kY2] += slope * pooled.y2;
            }
            if (a.pooled_grad) a.pooled_grad[k * values + i] = upstream * slope;
          });
    } else if (a.pooled_grad) {
      for (int64_t i = tile * kBlock + threadIdx.x; i < values; i += tiling.tiles * kBlock)
        a.pooled_grad[k * values + i] = T(0);
    }
    if (a.partial) {
      block_sum<kPooledParts>(sums, shared);
      if (threadIdx.x == 0) {
        for (int e = 0; e < kPooledParts; ++e) a.partial[block * kPooledParts + e] = sums[e];
      }
    }
  }
}

template <bool kEdges, typename S>
void launch_feature_loss(const FeatureLoss<S>& args, cudaStream_t stream) {
  const Tiling tiling = pool_tiling(args.map, args.tables);
  const unsigned grid = grid_of(args.tables.count * tiling.tiles);
  if (grid == 0) return;
  CLS2DET_LAUNCH((feature_loss_kernel<S, kEdges>), grid, stream, args, tiling);
}

}  // namespace
}  // namespace cls2det
