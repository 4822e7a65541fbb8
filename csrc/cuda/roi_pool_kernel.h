// Pooling of boxes and sums over their bins, for every operator that pools.
#pragma once

#include "cuda/axis_tables_kernel.h"

namespace cls2det {

// How the bins and channels of one box are split over blocks.
struct Tiling {
  int lanes;             // of a warp, that share one bin
  bool channels_first;   // neighbouring lanes take neighbouring channels instead of bins
  int64_t items, tiles;  // bins of a few channels per block; blocks per box
};
template <typename S>
Tiling pool_tiling(const MapView<S>& map, const AxisTables<Accumulate<S>>& tables);

// out (count, C, bins): the pooled map; 0 for ignored boxes, NaN for boxes that are not finite.
// image_index null: box k lies on image k.
template <typename S, typename Out>
void pool_boxes(
    const MapView<S>& map, const int64_t* image_index, const AxisTables<Accumulate<S>>& tables, Out* out, cudaStream_t stream);

// rows (count,) = factor * share * sum of partial[.., kValue]; grad_boxes (count, 4) = share * scale * sum of partial[.., kX1
// to kY2], 0 for clipped edges. Either may be null.
template <typename T>
void sum_partials(
    const T* partial, int64_t tiles, T share, T factor, const BoxList<T>& boxes, int height, int width, bool clip, T* rows,
    T* grad_boxes, cudaStream_t stream);

}  // namespace cls2det
