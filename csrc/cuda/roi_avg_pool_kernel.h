// The kernels of roi_avg_pool beside those of roi_pool_kernel.h and roi_map_gradient_kernel.h.
#pragma once

#include "cuda/axis_tables_kernel.h"

namespace cls2det {

// partial (count, tiles, kPooledParts): the sums of grad * pooled by edge, 0 for the value. tiles: those of pool_tiling.
// grad: (count, C, bins). image_index null: box k lies on image k.
template <typename S>
void roi_avg_pool_edges(
    const MapView<S>& map, const int64_t* image_index, const AxisTables<Accumulate<S>>& tables, const Accumulate<S>* grad,
    Accumulate<S>* partial, cudaStream_t stream);

}  // namespace cls2det
